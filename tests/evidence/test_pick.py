"""`lorakit pick`: which checkpoint of a run whose right answer is known, why, and how sure that is."""

import json
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from lorakit import evidence, history
from lorakit.cli import run
from lorakit.evidence import Candidate, recommend
from lorakit.evidence.choosing import gap
from lorakit.grid import Piece, listed
from tests.evidence.stories import tell, validated
from tests.pictures import scene

HARD = (0.2, -0.1, 0.1, -0.2, 0.05, -0.05, 0.15, -0.15)  # some pictures are harder than others, in every checkpoint


@pytest.fixture
def story(pictures, tmp_path):
    return lambda validations, **how: tell(pictures, tmp_path / "runs", validations, **how)


def chosen(validations, **how):
    """The updates in the order in which they are recommended."""
    found = recommend([Candidate(update=one.update, file=None, measured=one) for one in validations], **how)
    return [one.candidate.update for one in found.ranked], found


# -- the rule ----------------------------------------------------------------------------------------------------


def test_overfit_the_lowest_loss_is_long_past():
    order, found = chosen([validated(n, loss) for n, loss in [(100, 0.5), (200, 0.3), (300, 0.4), (400, 0.5)]])
    assert order[0] == 200
    assert [one.candidate.update for one in found.band] == [200]
    assert found.rise.mean == pytest.approx(0.2)
    assert found.lasting
    assert found.fall is None


def test_a_loss_that_is_higher_once_is_no_overfitting_yet():
    """From one update to another it goes up and down; two in a row are needed."""
    _, found = chosen([validated(n, loss) for n, loss in [(100, 0.5), (200, 0.3), (300, 0.5)]])
    assert found.rise is not None
    assert not found.lasting
    _, found = chosen([validated(n, loss) for n, loss in [(1, 0.3), (2, 0.5), (3, 0.31), (4, 0.5)]])
    assert not found.lasting
    _, found = chosen([validated(n, loss) for n, loss in [(1, 0.3), (2, 0.32), (3, 0.5), (4, 0.5)]])
    assert found.lasting


def test_underfit_the_last_is_the_lowest_and_it_still_falls():
    order, found = chosen([validated(n, loss) for n, loss in [(100, 0.9), (200, 0.7), (300, 0.5)]])
    assert order[0] == 300
    assert found.fall.mean == pytest.approx(0.2)
    assert found.rise is None


def test_good_the_most_trigger_for_its_drift_within_the_band():
    told = [
        validated(100, 0.6, trigger=0.01, drift=0.02),  # the best trade, and far too early
        validated(200, 0.31, trigger=0.05, drift=0.10),
        validated(300, 0.30, trigger=0.09, drift=0.12),
        validated(400, 0.305, trigger=0.10, drift=0.30),
    ]
    order, found = chosen(told)
    assert order == [300, 200, 400, 100]
    assert len(found.band) == 3
    assert found.rise is None
    assert found.fall is None


def test_where_no_trigger_tells_anything_the_lowest_loss_of_the_band():
    """Least drift would name the earliest, which learned the least; so would a ratio of noise."""
    told = [
        validated(n, loss, trigger=0.01, trigger_error=0.02, drift=drift)
        for n, loss, drift in [(1, 0.31, 0.01), (2, 0.30, 0.2), (3, 0.30, 0.1)]
    ]
    order, found = chosen(told)
    assert order == [3, 2, 1]
    assert not found.trigger_told
    assert chosen([validated(n, 0.3 + n / 1000, trigger=None, drift=0.1 / n) for n in (1, 2)])[0] == [1, 2]


def test_where_nothing_tells_them_apart_the_last():
    assert chosen([validated(n, None, trigger=None, drift=0.1) for n in (1, 2, 3)])[0] == [3, 2, 1]
    assert chosen([validated(n, None, trigger=0.01 / n, trigger_error=0.02) for n in (1, 2, 3)])[0] == [3, 2, 1]


def test_the_error_is_that_of_the_differences_where_each_picture_is_known():
    """Pictures differ much in difficulty; that all of them are a little worse is nevertheless sure."""
    low, high = (validated(n, loss, error=0.05, apart=HARD) for n, loss in [(1, 0.50), (2, 0.52)])
    found = gap(high, low)
    assert found.mean == pytest.approx(0.02)
    assert found.error == pytest.approx(0, abs=1e-9)
    assert not found.within
    assert gap(validated(2, 0.52, error=0.05), validated(1, 0.50, error=0.05)).within
    mixed = validated(2, 0.52, apart=[one + (0.1 if place % 2 else -0.1) for place, one in enumerate(HARD)])
    assert gap(mixed, low).within


@pytest.mark.parametrize(
    ("broken", "why"),
    [
        (validated(200, math.nan), "loss is no finite number"),
        (validated(200, 0.1, drift=math.inf), "drift is no finite number"),
        (validated(200, 0.1, norm=math.nan), "norm is no finite number"),
        (validated(200, 0.1, norm=0.0), "changes nothing"),
        (validated(200, 0.1, drift=0.51), "drifts 51.0%"),
    ],
)
def test_broken_and_drifting_checkpoints_are_dropped(broken, why):
    order, found = chosen([validated(100), broken, validated(300, 0.31)])
    assert sorted(order) == [100, 300]
    assert [one.candidate.update for one in found.dropped] == [200]
    assert why in found.dropped[0].why
    assert found.lowest.update == 100  # what is dropped is no measure for the others


def test_what_is_far_is_a_setting_and_where_all_are_far_none_is_dropped_for_it():
    told = [validated(100, drift=0.2), validated(200, 0.29, drift=0.3)]
    assert len(chosen(told, most_drift=0.25)[1].dropped) == 1
    order, found = chosen(told, most_drift=0.1)
    assert len(order) == 2
    assert found.all_drift


def test_without_pictures_held_out_the_strongest_trigger_makes_the_band():
    told = [
        validated(100, None, trigger=0.01, drift=0.01),
        validated(200, None, trigger=0.10, drift=0.20),
        validated(300, None, trigger=0.105, drift=0.40),
    ]
    order, found = chosen(told)
    assert order == [200, 300, 100]
    assert found.lowest is None


@given(st.lists(st.tuples(*[st.floats(0.01, 1.0)] * 4), min_size=1, max_size=8), st.randoms())
def test_the_first_is_within_a_standard_error_and_no_order_of_reading_matters(figures, chance):
    told = [
        validated(n, loss, trigger=trigger, drift=drift, error=error)
        for n, (loss, error, trigger, drift) in enumerate(figures, 1)
    ]
    order, _ = chosen(told, most_drift=2.0)
    assert sorted(order) == list(range(1, len(told) + 1))
    by_update = {one.update: one for one in told}
    lowest = min(told, key=lambda one: one.loss)
    assert by_update[order[0]].loss <= lowest.loss + lowest.loss_error
    shuffled = list(told)
    chance.shuffle(shuffled)
    assert chosen(shuffled, most_drift=2.0)[0] == order


# -- the training loss -------------------------------------------------------------------------------------------


def test_no_loss_of_training_is_ever_used(story):
    """Every one of them is removed, shuffled or turned into nonsense, and not a letter of the answer changes."""
    told = [validated(n, loss, drift=drift) for n, loss, drift in [(100, 0.5, 0.1), (200, 0.3, 0.2), (300, 0.31, 0.1)]]
    folder = story([validated(0, 0.9, drift=0.0), *told])
    right = answer(folder)
    assert right["recommended"]["update"] == 300
    lines = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    losses = [one["loss"] for one in lines if one["event"] == "UpdateFinished"]
    random.Random(1).shuffle(losses)

    def nonsense(change):
        changed = [made for one in lines if (made := change(dict(one))) is not None]
        (folder / "events.jsonl").write_text("".join(f"{json.dumps(one)}\n" for one in changed))
        return answer(folder)

    def shuffled(one):
        return {**one, "loss": losses.pop()} if one["event"] == "UpdateFinished" else one

    def opposite(one):
        if one["event"] != "Validated":
            return {**one, "loss": 1e9} if one["event"] == "UpdateFinished" else one
        worse = 5.0 - one["update"] / 100
        return {**one, "train_loss": worse, "train_error": math.nan, "gap": -worse, "train_by_level": [worse]}

    assert nonsense(shuffled) == right
    assert nonsense(lambda one: None if one["event"] == "UpdateFinished" else one) == right
    assert nonsense(opposite) == right


def answer(folder):
    found = history.read(folder)
    previews = evidence.judged(found)
    return evidence.table(found, recommend(evidence.candidates(found, previews)), previews)


# -- previews ----------------------------------------------------------------------------------------------------


def test_a_checkpoint_whose_previews_show_nothing_is_dropped(story):
    good = {n: [("a cat", scene(n)), ("a dog", scene(n + 1))] for n in (100, 200)}
    folder = story(
        [validated(100, 0.3), validated(200, 0.3), validated(300, 0.2)],
        previews={**good, 300: [("a cat", Image.new("RGB", (64, 64))), ("a dog", scene(7))]},
    )
    found = answer(folder)
    assert found["dropped"] == [
        {"update": 300, "because": "1 of its 2 previews show nothing (000300-0.png is black)"},
    ]
    assert found["recommended"]["update"] == 100


def test_a_nearly_empty_preview_is_a_collapse_and_a_flat_style_is_none(story, pictures):
    drawing = Image.new("RGB", (64, 64), "white")
    drawing.paste((120, 80, 60), (16, 16, 48, 48))
    drawn = {n: [("a cat", drawing if n == 300 else scene(n))] for n in (100, 200, 300)}
    validations = [validated(n) for n in (100, 200, 300)]
    flat = story(validations, previews=drawn, name="flat")  # the training pictures are of one colour each
    assert not answer(flat)["dropped"]
    for number, path in enumerate(sorted(pictures.glob("*.png"))):
        scene(number, (64, 64)).save(path)
    rich = story(validations, previews=drawn, name="rich")
    assert ["nearly empty" in one["because"] for one in answer(rich)["dropped"]] == [True]


def test_near_copies_of_training_pictures_are_named(story, pictures):
    for number, path in enumerate(sorted(pictures.glob("*.png"))):
        scene(number, (64, 64)).save(path)
    drawn = {100: [("a cat", scene(2, (64, 64)))], 200: [("a cat", scene(99, (64, 64)))]}
    found = answer(story([validated(100, 0.3), validated(200, 0.301)], previews=drawn))
    one, other = (seen for ranked in found["ranked"] for seen in ranked["previews"])
    assert one["near_copy_of"].endswith("2.png")
    assert one["bits_from_the_nearest_training_picture"] == 0
    assert other["near_copy_of"] == ""
    assert other["bits_from_the_nearest_training_picture"] > 8
    assert any("nearly copies 2.png" in reason for reason in found["ranked"][0]["reasons"])


def test_a_prompt_that_is_named_twice_tells_how_much_pictures_differ_over_seeds(story):
    alike, apart = scene(1), scene(2)
    drawn = {100: [("a cat", alike), ("a cat", apart)], 200: [("a cat", alike), ("a cat", alike)]}
    folder = story([validated(100), validated(200)], previews=drawn)
    previews = evidence.judged(history.read(folder))
    assert previews.spread(200) == 0
    assert previews.spread(100) > 0.2
    assert previews.spread(300) is None


def test_the_seeds_of_the_grid_count_too(story):
    folder = story([validated(100)])
    pieces = []
    for seed, strength in [(1, 1.0), (2, 1.0), (3, 0.6)]:
        piece = Piece(update=100, strength=strength, guidance=3.0, number=0, prompt="a", seed=seed, key=f"{seed}" * 12)
        path = folder / piece.row()["path"]
        path.parent.mkdir(parents=True, exist_ok=True)
        scene(seed).save(path)
        pieces.append(piece.row())
    (folder / "grid" / "index.json").write_bytes(listed(pieces))
    (found,) = evidence.judged(history.read(folder)).diversity
    assert (found.update, found.prompt, found.pictures) == (100, "a (grid, guidance 3)", 2)
    (folder / "grid" / "index.json").write_text('[{"path": 3}]')
    assert not evidence.judged(history.read(folder)).diversity


def test_previews_are_judged_where_the_training_pictures_are_gone(story, pictures):
    folder = story([validated(100)], previews={100: [("a cat", scene(1))]})
    for path in pictures.iterdir():
        path.unlink()
    pictures.rmdir()
    assert any("not compared with training pictures" in one for one in answer(folder)["weak"])


# -- the command -------------------------------------------------------------------------------------------------


def test_the_top_three_with_reasons_and_a_mark_and_nothing_else_is_touched(story, capsys):
    told = [validated(n, loss, apart=HARD) for n, loss in [(100, 0.5), (200, 0.3), (300, 0.33), (400, 0.4)]]
    folder = story(told)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert run(["pick", str(folder)]) == 0
    said = capsys.readouterr().out
    assert said.startswith("recommended  update 200  ")
    assert [line.split()[2] for line in said.splitlines() if line.startswith("then")] == ["300", "400"]
    assert "held-out loss 0.3000 ± 0.0200, the lowest" in said
    assert "trigger sensitivity +0.0500 ± 0.0100, drift 10.0%, 0.5 for each unit of drift" in said
    assert "Overfitting: the held-out loss rises by 0.1000 ± 0.0000 from its lowest to update 400" in said
    assert "An earlier checkpoint is recommended." in said
    assert "best" not in said
    after = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    written = folder / "recommended.json"
    assert json.loads(after.pop(written))["recommended"]["file"] == "checkpoints/update-000200/story-000200.safetensors"
    assert after == before
    assert run(["pick", str(folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(written.read_text())


def test_the_lora_itself_stands_for_the_last_checkpoint(story):
    folder = story([validated(100, 0.3), validated(200, 0.2)])
    (folder / "story.safetensors").write_bytes(b"")
    assert answer(folder)["recommended"]["file"] == "story.safetensors"


def test_a_run_that_is_still_learning_is_told_to_go_on(story, capsys):
    folder = story([validated(n, 1 - n / 500) for n in (100, 200, 300)])
    assert run(["pick", str(folder)]) == 0
    assert "Still learning: the held-out loss fell by 0.2000 ± 0.0200" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("validations", "how", "why"),
    [
        ([validated(n, 0.3, apart=HARD[:2]) for n in (1, 2, 3)], {}, "2 pictures held out"),
        ([validated(n, 0.3, error=None) for n in (1, 2, 3)], {}, "one picture is held out"),
        ([validated(n, None) for n in (1, 2, 3)], {}, "no picture is held out"),
        ([validated(1)], {}, "1 checkpoint to choose from"),
        ([validated(n, 0.3) for n in (1, 2, 3)], {}, "losses of 3 checkpoints differ by less"),
        ([validated(n, 0.3, trigger=None) for n in (1, 2)], {}, "hold no trigger word"),
        ([validated(n, 0.3, trigger_error=None) for n in (1, 2)], {}, "measured on one picture"),
        ([validated(n, 0.3, trigger=0.01) for n in (1, 2)], {}, "more than two of its standard errors"),
        ([validated(n, 0.3, drift=None) for n in (1, 2)], {}, "no drift was measured"),
        ([validated(n, 0.3, drift=0.9) for n in (1, 2)], {}, "every checkpoint drifts more than 50.0%"),
        ([validated(1), validated(2)], {"finished": False}, "the run is not finished"),
        ([validated(1), validated(2)], {"checkpoints": [1, 2, 7]}, "checkpoints of update 7"),
        ([validated(1), validated(2)], {}, "no preview was drawn"),
    ],
)
def test_why_the_evidence_is_weak_is_said(story, capsys, validations, how, why):
    assert run(["pick", str(story(validations, **how))]) == 0
    said = capsys.readouterr().out
    assert why in said.partition("evidence     weak:")[2]


def test_strong_evidence_is_not_called_weak(story, capsys):
    told = [
        validated(n, loss, apart=HARD, trigger=0.1) for n, loss in [(100, 0.5), (200, 0.3), (300, 0.33), (400, 0.4)]
    ]
    drawn = {n: [("a cat", scene(n))] for n in (100, 200, 300, 400)}
    assert run(["pick", str(story(told, previews=drawn))]) == 0
    assert "weak" not in capsys.readouterr().out


def test_where_every_checkpoint_is_dropped_none_is_recommended(story, capsys):
    folder = story([validated(n, math.nan) for n in (100, 200)])
    assert run(["pick", str(folder)]) == 1
    said = capsys.readouterr().out
    assert "recommended  none" in said
    assert said.count("no finite number") == 2
    assert json.loads((folder / "recommended.json").read_text())["recommended"] is None


@pytest.mark.parametrize(
    ("validations", "how", "why"),
    [
        ([validated(100)], {"checkpoints": []}, "has no checkpoint"),
        ([], {"checkpoints": [100]}, "was never validated"),
        ([validated(100)], {"checkpoints": [50]}, "none of the 1 checkpoints"),
    ],
)
def test_runs_that_nothing_can_be_said_of(story, capsys, validations, how, why):
    assert run(["pick", str(story(validations, **how))]) == 2
    said = capsys.readouterr().err
    assert why in said
    assert len(said.splitlines()) == 1


def test_bad_input(capsys, tmp_path):
    assert run(["pick", str(tmp_path / "nothing")]) == 2
    assert "is not a run" in capsys.readouterr().err
    assert run(["pick", str(tmp_path), "--most-drift", "0"]) == 2
    assert run(["pick", str(tmp_path), "--most-drift", "much"]) == 2


def test_a_mark_that_cannot_be_written_is_told(story, capsys):
    folder = story([validated(100)])
    (folder / "recommended.json").mkdir()
    assert run(["pick", str(folder)]) == 2
    said = capsys.readouterr()
    assert "recommended.json cannot be written" in said.err
    assert said.out.startswith("recommended  update 100")  # the answer stands nevertheless
