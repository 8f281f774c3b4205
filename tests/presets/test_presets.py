"""Every shipped preset plans, says how to run it, and is valid TOML for an editor."""

import json
import shlex

import jsonschema
import pytest

from lorakit import Kit
from lorakit.config import leaves, read_toml, schema

KIT = Kit()
FLUX = ("character", "character-16gb", "character-24gb", "character-48gb", "kontext", "schnell", "style", "toy")
QWEN = ("character", "character-24gb", "character-48gb", "edit", "style", "toy")
SDXL = ("character", "character-16gb", "character-48gb", "character-text", "style", "toy")
NAMES = (
    *(f"flux/{name}" for name in FLUX),
    *(f"qwen/{name}" for name in QWEN),
    *(f"sdxl/{name}" for name in SDXL),
)


def test_these_presets_are_shipped():
    assert tuple(KIT.shelves.presets) == NAMES
    assert {KIT.shelves.presets.owner(name) for name in NAMES} == {"presets"}


def test_every_familys_default_preset_is_shipped():
    for family in KIT.shelves.families.values():
        assert f"{family.name}/{family.default_preset}" in NAMES


@pytest.mark.parametrize("name", NAMES)
def test_it_plans_without_a_problem_and_every_value_is_taken(name, pictures):
    family, _, preset = name.partition("/")
    plan = KIT.plan({"family": family, "preset": preset, "trigger": "sks", "data": [{"folder": str(pictures)}]})
    assert plan.errors == ()
    for path, value in leaves(read_toml(KIT.shelves.presets[name])):
        assert plan.choices[path].value == value
        assert plan.choices[path].decided_by == (f"preset {name}" if path != "family" else "the call")


@pytest.mark.parametrize("name", NAMES)
def test_its_header_is_what_it_is_for_and_the_command_that_runs_it(name):
    family, _, preset = name.partition("/")
    purpose, command = KIT.shelves.presets[name].read_text(encoding="utf-8").splitlines()[:2]
    assert purpose.startswith("# ")
    words = shlex.split(command.removeprefix("# "))
    assert words[:6] == ["lorakit", "train", "--family", family, "--preset", preset]
    assert {"--data", "--trigger"} <= set(words)


@pytest.mark.parametrize("name", NAMES)
def test_it_is_valid_by_the_schema_and_a_misspelt_key_is_not(name):
    check = jsonschema.Draft202012Validator(json.loads(schema()))
    table = read_toml(KIT.shelves.presets[name])
    check.validate(table)
    assert not check.is_valid({**table, "lora": {"rnak": 16}})


@pytest.mark.parametrize("name", NAMES)
def test_it_is_short(name):
    assert len(KIT.shelves.presets[name].read_text(encoding="utf-8").splitlines()) <= 40
