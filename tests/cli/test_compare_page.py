"""`lorakit compare --train`: what runs left, read back and drawn on one page; nothing is trained twice."""

import re

import pytest

from lorakit import Kit, compare_page, history
from lorakit.cli import run
from lorakit.compare import Side
from lorakit.errors import RunError
from lorakit.events import PreviewDrawn, RunFinished, UpdateFinished, Validated
from tests.pictures import picture

EVIL = '<script>alert(1)</script> & "sks"'


def validated(update, loss):
    return Validated(
        update=update, loss=loss, loss_error=0.01, train_loss=loss, train_error=0.01, gap=0.0, levels=(0.5,),
        loss_by_level=(loss,), train_by_level=(loss,), trigger=0.0, trigger_error=0.0, drift=0.1 * update, norm=0.1,
        largest_norm=0.1, largest_layer="x", seconds=1.0,
    )  # fmt: skip


@pytest.fixture
def made(pictures, tmp_path):
    """A run's folder as a run of two updates leaves it."""

    def make(name, prompt="a cat", end=True):
        asked = {"family": "qwen", "preset": "toy", "trigger": "sks", "name": name, "output": str(tmp_path / "runs")}
        tables = {"data": [{"folder": str(pictures)}], "train": {"updates": 2}, "sampling": {"prompts": [prompt]}}
        plan = Kit().plan({**asked, **tables})
        folder = plan.folder
        picture(folder / "samples" / "000002-0.png", (48, 48))
        told = [
            validated(0, 0.9),
            *(
                UpdateFinished(update=n, passes=n, epoch=n, loss=1 / n, learning_rate=1e-3, grad_norm=1.0, seconds=n)
                for n in (1, 1, 2)
            ),
            validated(2, 0.4),
            PreviewDrawn(update=2, path="elsewhere/samples/000002-0.png", prompt=prompt),
        ]
        if end:
            told.append(RunFinished(update=2, folder=str(folder), lora="", proof="diffusers 48/48", seconds=3.0))
        (folder / "plan.json").write_text(plan.to_json())
        (folder / "events.jsonl").write_text("".join(f"{one.to_json()}\n" for one in told) + '{"event": "Upda')
        return plan

    return make


def test_a_run_is_read_back_from_its_folder(made):
    found = history.read(made("one").folder)
    assert [one.update for one in found.updates] == [1, 2]
    assert found.seconds_per_update == 1.5
    assert found.finished
    assert found.last_previews() == {"a cat": found.folder / "samples" / "000002-0.png"}
    assert not history.read(made("two", end=False).folder).finished


def test_a_folder_that_is_no_run_is_told(tmp_path):
    with pytest.raises(RunError, match="is not a run"):
        history.read(tmp_path)


def test_the_page_shows_every_run_and_escapes_what_is_not_ours(made, tmp_path):
    plans = [made("one", EVIL), made("two", EVIL)]
    sides = [Side(f"qwen/{plan.settings.name}", plan) for plan in plans]
    compare_page.write(sides, [history.read(plan.folder) for plan in plans], tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert page.count("data:image/png;base64,") == 2
    assert page.count("diffusers 48/48") == 2
    assert page.count("<polyline") == 4
    assert page.count("0.9000 to 0.4000") == 2
    assert not re.search(r"(src|href)=.https?:", page)
    assert page.count("not drawn") == 2  # no sheets of strengths


def test_a_curve_keeps_its_ends_and_its_range():
    found = compare_page.curve(list(range(5000)), [5000.0 - n for n in range(5000)])
    points = [tuple(map(float, one.split(","))) for one in found.points.split()]
    assert len(points) <= compare_page.POINTS + 1
    assert points[0] == (compare_page.EDGE, compare_page.EDGE)
    assert points[-1] == (compare_page.WIDTH - compare_page.EDGE, compare_page.HEIGHT - compare_page.EDGE)
    assert compare_page.curve([1], [1.0]) is None
    assert compare_page.curve([1, 2], [3.0, 3.0]) is not None  # a level line


def test_smoothing_starts_at_the_first_value_and_keeps_a_level():
    assert history.smoothed([4.0, 2.0]) == [4.0, 3.0]
    assert history.smoothed([2.0] * 30) == [2.0] * 30


# -- the command -------------------------------------------------------------------------------------------------


@pytest.fixture
def compared(pictures, tmp_path, monkeypatch, capsys):
    """`lorakit compare --train` of two presets of one family, where training is counted and leaves a run's folder."""
    monkeypatch.chdir(tmp_path)
    trained = []

    def train(self, plan, control=None):
        trained.append(plan)
        plan.folder.mkdir(parents=True)
        (plan.folder / "plan.json").write_text(plan.to_json())
        done = plan.settings.train.updates
        end = RunFinished(update=done, folder=str(plan.folder), lora="", proof="", seconds=1.0)
        (plan.folder / "events.jsonl").write_text(f"{end.to_json()}\n")
        return iter(())

    monkeypatch.setattr(Kit, "train", train)

    def call(*more):
        given = ["--data", str(pictures), "--trigger", "sks", "--train", "--output", "out", *more]
        return run(["compare", "qwen/toy", "qwen/style", *given]), capsys.readouterr(), trained

    return call


def test_each_is_trained_once_with_the_same_prompts_and_then_not_again(compared, tmp_path):
    code, said, trained = compared()
    assert code == 0, said.err
    assert [plan.settings.name for plan in trained] == ["qwen-toy", "qwen-style"]
    assert len({plan.settings.sampling.prompts for plan in trained}) == 1
    assert len({plan.settings.seed for plan in trained}) == 1
    assert (tmp_path / "out" / "compare.html").is_file()
    assert "out/compare.html" in said.out
    code, _, trained = compared()
    assert (code, len(trained)) == (0, 2)


def test_runs_of_other_settings_are_not_taken_for_these(compared):
    assert compared()[0] == 0
    code, said, _ = compared("--set", "lora.rank=2")
    assert code == 2
    assert "lora.rank" in said.err


@pytest.mark.parametrize("change", ["train.updates=8", 'sampling.prompts=["another"]'])
def test_nor_are_runs_of_another_length_or_other_prompts(compared, change):
    assert compared()[0] == 0
    code, said, _ = compared("--set", change)
    assert code == 2
    assert re.search("was begun otherwise: .*prompts|not the one that the run began with", said.err)


def test_nor_are_runs_on_other_pictures(compared, pictures):
    assert compared()[0] == 0
    (pictures / "0.txt").write_text("another caption")
    code, said, _ = compared()
    assert code == 2
    assert "the data are not those" in said.err


def test_every_error_is_told_before_anything_is_trained(compared):
    code, said, trained = compared("--set", "sampling.width=1000001")
    assert code == 2
    assert not trained
    code, said, trained = compared("--set", "sampling.width=777")
    assert code == 2
    assert "qwen/style: sampling.width" in said.err
    assert not trained


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["qwen/toy", "qwen/toy", "--train"], "named twice"),
        (["qwen/toy", "--train"], "one preset alone"),
        (["qwen/toy", "qwen/style", "--output", "x"], "no effect without --train"),
        (["qwen/toy", "qwen/style", "--train", "--gpu", "4090"], "--gpu has no effect"),
        (["qwen/toy", "qwen/style", "--train", "--markdown"], "--markdown has no effect"),
        (["qwen/toy", "nobody/toy", "--train"], "nobody"),
    ],
)
def test_bad_input(capsys, arguments, why):
    assert run(["compare", *arguments]) == 2
    assert why in capsys.readouterr().err
