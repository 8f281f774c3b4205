"""What the family says of a plan before it is carried out."""

import json
import re

import pytest

from lorakit import Kit
from tests.pictures import picture

KIT = Kit()


@pytest.fixture
def plan_for(tmp_path):
    picture(tmp_path / "targets" / "a.png", caption="a cat")
    picture(tmp_path / "references" / "a.png")
    (tmp_path / "pairs.jsonl").write_text(json.dumps({"target": "targets/a.png"}), encoding="utf-8")

    def make(**given):
        asked = {"family": "qwen", "trigger": "sks", "data": [{"folder": str(tmp_path / "targets")}], **given}
        return KIT.plan(asked)

    return make


def said(plan):
    return [problem.message for problem in plan.problems if problem.owner == "family qwen"]


def test_references_are_drawn_otherwise_by_an_unpatched_diffusers(plan_for, tmp_path):
    with_references = {"folder": str(tmp_path / "targets"), "references": str(tmp_path / "references")}
    (told,) = said(plan_for(variant="edit-2509", data=[with_references]))
    assert "mm_token_type_ids" in told
    assert "\n" not in told
    seen = {"prompts": ["a dog"], "references": [[str(tmp_path / "references" / "a.png")]]}
    assert said(plan_for(variant="edit-2509", sampling=seen)) == [told]
    assert said(plan_for(variant="edit-2509")) == []
    assert said(plan_for(variant="edit-2509", data=[{"list": str(tmp_path / "pairs.jsonl")}])) == []


@pytest.mark.parametrize(
    ("table", "reason"),
    [
        ({"optimizer": {"learning_rate": 6e-4}}, "0.0006 overfits and fries"),
        ({"lora": {"rank": 128}}, "rank = 128 is over 64.*backgrounds and lighting"),
    ],
)
def test_a_character_is_easily_spoilt(plan_for, table, reason):
    for preset in ("character", "qwen/character"):
        (told,) = said(plan_for(preset=preset, **table))
        assert re.search(reason, told)
    assert len(said(plan_for(**table))) == 1  # it is the family's usual preset
    assert said(plan_for(preset="toy", **table)) == []  # no character


def test_what_is_usual_is_not_warned_of(plan_for):
    assert said(plan_for(optimizer={"learning_rate": 5e-4}, lora={"rank": 64})) == []


@pytest.mark.parametrize(
    ("recipe", "guidance", "steps", "shift"),
    [("seed", 3.5, 28, None), ("card", 4.0, 40, None), ("comfyui", 2.5, 20, 3.0)],
)
def test_three_recipes_to_choose_from(plan_for, recipe, guidance, steps, shift):
    sampling = plan_for(sampling={"recipe": recipe}).settings.sampling
    assert (sampling.guidance, sampling.steps, sampling.shift) == (guidance, steps, shift)
