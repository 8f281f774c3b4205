"""Which pictures a grid has, before anything is drawn."""

from pathlib import Path

import pytest

from lorakit.grid import GUIDANCES, Wanted, guidances, listed, pieces


@pytest.fixture
def plan_of(kit, asked):
    def make(**changes):
        return kit.plan({**asked, **changes})

    return make


def test_a_variant_without_guidance_has_one_column(kit, plan_of):
    family = kit.shelves.families["fake"]
    found, note = guidances(plan_of(variant="quick"), family, [3.0, 4.0])
    assert found == (1.0,)
    assert "draws without guidance" in note
    for variant in ("small", "large"):
        assert guidances(plan_of(variant=variant), family, []) == (GUIDANCES, "")
        assert guidances(plan_of(variant=variant), family, [2.0, 2.0]) == ((2.0,), "")


def test_the_key_is_of_everything_that_a_picture_depends_on(plan_of):
    def key(strength=1.0, digest="a", prompt="x", **sampling):
        plan = plan_of(sampling={"prompts": [prompt], **sampling})
        (piece,) = pieces(plan, Wanted({5: Path("x")}, (strength,), (3.0,)), {5: digest})
        return piece.key

    keys = [key(), key(strength=0.5), key(digest="b"), key(prompt="y"), key(steps=7), key(seed=1), key(width=32)]
    assert len(set(keys)) == len(keys)
    assert key(guidance=2) == key(every=0) == key()  # guidance is the piece's own


def test_the_list_is_in_order_and_text():
    row = {"update": 1, "prompt": "é", "strength": 1.0, "guidance": 3.0, "key": "a"}
    assert listed([{**row, "update": 2}, row]).index(b'"update": 1') < listed([row, {**row, "update": 2}]).index(
        b'"update": 2'
    )
    assert "é".encode() in listed([row])
