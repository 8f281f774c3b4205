"""`lorakit compare`: what differs, by whose decision, and what each run takes."""

import json

import pytest

from lorakit import Kit
from lorakit.cli import run
from lorakit.compare import UNKNOWN, Side, differing, figures, markdown

NAMES = ("qwen/character", "qwen/toy")


@pytest.fixture
def sides(pictures):
    kit = Kit()
    data = [{"folder": str(pictures)}]
    return [Side(name, kit.plan({"family": "qwen", "preset": name, "trigger": "sks", "data": data})) for name in NAMES]


def test_it_shows_what_differs_and_nothing_else(sides):
    found = differing(sides)
    for name, (one, other) in found.items():
        assert one is None or other is None or one.value != other.value, name
    assert [choice.value for choice in found["optimizer.learning_rate"]] == [2e-4, 1e-3]
    assert [choice.decided_by for choice in found["optimizer.learning_rate"]] == [f"preset {name}" for name in NAMES]
    same = set(sides[0].plan.choices) - set(found) - {"data", "name", "preset", "output"}
    for name in same:
        assert sides[0].plan.choices[name].value == sides[1].plan.choices[name].value
    assert not differing([sides[0], sides[0]])


def test_what_nobody_can_tell_is_said_to_be_unknown(sides):
    told = figures(sides[0])
    assert told["memory of the device"] == told["the whole run"] == UNKNOWN
    assert told["updates"].startswith("10 (")


def test_markdown_has_a_column_for_each_and_breaks_at_no_bar(sides):
    lines = markdown([Side("a|b", sides[0].plan), sides[1]]).splitlines()
    assert lines[0] == "|  | a\\|b | qwen/toy |"
    assert {line.replace("\\|", "").count("|") for line in lines} == {4}


def test_for_programs(capsys, pictures):
    assert run(["compare", *NAMES, "--data", str(pictures), "--trigger", "sks", "--gpu", "H100", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["compared"] == list(NAMES)
    assert found["settings"]["train.resolution"][0]["value"] == 1024
    assert found["runs"][0]["updates"] == 10
    assert found["runs"][0]["memory"] > 1e9
    assert found["runs"][0]["seconds"] > 0


def test_for_a_person_without_pictures(capsys):
    assert run(["compare", *NAMES]) == 0
    shown = capsys.readouterr().out
    assert "optimizer.name" in shown
    assert "preset qwen/toy" in shown
    assert UNKNOWN in shown
    assert "no pictures" not in shown.partition("updates  ")[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["qwen/toy"], "one preset alone"),
        (["qwen/toy", "character"], "not of the form FAMILY/PRESET"),
        (["qwen/toy", "qwen/nothing"], "nothing"),
        (["qwen/toy", "nobody/toy"], "nobody"),
        (["qwen/toy", "qwen/character", "--json", "--markdown"], "exclude each other"),
        (["qwen/toy", "qwen/character", "--data", "/nowhere"], "/nowhere"),
        (["qwen/toy", "qwen/character", "--set", "lora.rnak=3"], "lora.rank"),
    ],
)
def test_bad_input(capsys, arguments, message):
    assert run(["compare", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_preset_of_another_family_is_refused_with_the_reason(capsys, tmp_path):
    plugin = tmp_path / "other.py"
    plugin.write_text(
        "from pathlib import Path\nfrom lorakit import hookimpl\nfrom lorakit_qwen.family import Qwen\n\n\n"
        "class Other(Qwen):\n    name = 'other'\n\n\n"
        "@hookimpl\ndef register(registry):\n    registry.family(Other())\n",
        encoding="utf-8",
    )
    assert run(["--plugin", str(plugin), "train", "--family", "other", "--preset", "qwen/character"]) == 2
    said = capsys.readouterr().err
    assert "the preset qwen/character is for the family 'qwen', not 'other'" in said
    assert "its values were chosen for another architecture" in said
