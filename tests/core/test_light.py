"""The deciding half imports nothing heavy: planning must answer at once."""

import json
import subprocess
import sys

import pytest

HEAVY = ["torch", "diffusers", "transformers", "peft", "bitsandbytes", "accelerate", "safetensors", "numpy"]


def imported(code, *arguments):
    """Which heavy packages a fresh Python has imported after `code`."""
    ask = f"{code}\nimport json, sys; print(json.dumps([name for name in {HEAVY!r} if name in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", ask, *arguments], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


PLAN = """
import sys
from lorakit import Kit, Plan
kit = Kit()
plan = kit.plan({"family": "qwen", "trigger": "sks", "data": [{"folder": sys.argv[1]}]})
assert plan.arithmetic.images == 4
assert Plan.from_json(plan.to_json()) == plan
assert kit.shelves.families
"""


@pytest.mark.parametrize(
    "code",
    ["import lorakit", "from lorakit import *", "import lorakit_qwen, lorakit_sdxl, lorakit_presets", PLAN],
    ids=["import", "names", "plugins", "plan"],
)
def test_nothing_heavy_is_imported(code, pictures):
    assert imported(code, str(pictures)) == []


def test_the_question_can_be_answered_with_yes():
    assert imported("import numpy") == ["numpy"]


def test_every_public_name_exists():
    import lorakit

    assert all(getattr(lorakit, name) is not None for name in lorakit.__all__)
    with pytest.raises(AttributeError, match="nothing_like_this"):
        _ = lorakit.nothing_like_this
