"""A plan in words."""

import pytest
import tomli

from lorakit import prefer
from lorakit.config import leaves
from lorakit.explain import arithmetic, diff, to_toml
from tests.core.fake import make_kit, speaker


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"train": {"updates": 7}},
        {"train": {"epochs": 1, "accumulation": 3}},
        {"trigger": 'a "quoted" \\ Zoë', "optimizer": {"epsilon": 1e-9}},
        {"scheduler": {"timesteps": "shift", "shift": 3}, "sampling": {"every": 0, "prompts": []}},
    ],
)
def test_the_plan_as_toml_gives_the_same_plan_again(kit, asked, more):
    plan = kit.plan({**asked, **more})
    again = kit.plan(tomli.loads("\n".join(to_toml(plan))))
    assert again.settings == plan.settings
    assert again.arithmetic == plan.arithmetic


def test_toml_says_who_decided_and_why(asked):
    plugin = speaker("sampling_rules", prefer("sampling.guidance", 3, because="it follows the words"))
    lines = {
        line.partition(" = ")[0]: line for line in to_toml(make_kit(voice=plugin).plan({**asked, "lora": {"alpha": 4}}))
    }
    assert lines["guidance"].endswith("# voice: it follows the words")
    assert lines["alpha"].endswith("# the call")
    assert lines["batch_size"].endswith("# default")


def test_toml_holds_every_setting_that_has_a_value(kit, asked):
    plan = kit.plan(asked)
    written = dict(leaves(tomli.loads("\n".join(to_toml(plan)))))
    assert set(written) == {name for name, choice in plan.choices.items() if choice.value is not None}


def test_the_arithmetic_in_words(kit, asked):
    words = "\n".join(arithmetic(kit.plan({**asked, "train": {"epochs": 10, "accumulation": 4}})))
    assert "4, with their repeats 4 passes an epoch" in words
    assert "64x64 (3), 80x48 (1)" in words
    assert "batches of 1 x 4 accumulated = 4 passes" in words
    assert "10 epochs = 10 updates = 40 passes" in words
    assert arithmetic(kit.plan({**asked, "data": []})) == []


def test_diff(kit, asked):
    one, other = kit.plan(asked), kit.plan({**asked, "lora": {"rank": 8}})
    assert diff(one, other) == {"lora.rank": (16, 8), "lora.alpha": (16.0, 8.0)}
    assert diff(one, one) == {}


def test_a_plan_without_checkpointing_means_itself_too(kit, asked):
    """What is decided of blocks that are never computed again is no setting that somebody asked for in vain."""
    plan = kit.plan({**asked, "train": {"gradient_checkpointing": False}})
    assert kit.plan(tomli.loads("\n".join(to_toml(plan)))).settings == plan.settings
