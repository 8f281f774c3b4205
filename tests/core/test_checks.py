"""What core finds odd about a plan: allowed, and rarely meant."""

import pytest

from lorakit.errors import ConfigError


@pytest.fixture
def problems(kit, asked):
    """The problems of a plan, `error: ` before those that stop the run."""

    def found(**settings):
        plan = kit.plan({**asked, "save": {"every": 0}, **settings})
        return [f"error: {one.message}" if one.severity == "error" else one.message for one in plan.problems]

    return found


def test_an_ordinary_run_has_no_problems(problems):
    assert problems() == []


def test_no_pictures_stop_the_run(problems, kit, asked):
    [problem] = problems(data=[])
    assert problem.startswith("error: no pictures are named: say --data FOLDER")
    with pytest.raises(ConfigError, match="no pictures"):
        kit.train(kit.plan({**asked, "data": []}))


def test_no_trigger(problems):
    [problem] = problems(trigger="")
    assert "no trigger word" in problem


def test_batches_that_are_not_full(problems):
    [problem] = problems(train={"batch_size": 2})  # three pictures of one shape, one of another
    assert "2 places stay empty" in problem


@pytest.mark.parametrize(("ema", "odd"), [(0.0, False), (0.5, False), (0.999, True)])
def test_an_average_longer_than_the_run(problems, ema, odd):
    assert any("train.ema" in one for one in problems(train={"ema": ema, "updates": 100})) == odd


@pytest.mark.parametrize(("warmup", "odd"), [(39, False), (40, True)])
def test_a_warm_up_that_takes_the_whole_run(problems, warmup, odd):
    assert any("never reaches its peak" in one for one in problems(optimizer={"warmup": warmup})) == odd


@pytest.mark.parametrize(
    ("save", "odd"),
    [({"keep": 10}, False), ({"keep": 9}, True), ({"every": 4, "keep": 10}, False), ({"every": 2, "keep": 10}, True)],
)
def test_more_checkpoints_than_are_kept(problems, save, odd):
    found = problems(save=save)  # 10 epochs of 4 updates
    assert [("kept (save.keep)" in one) for one in found] == ([True] if odd else [])


@pytest.mark.parametrize("name", ["width", "height"])
def test_a_preview_side_that_the_family_cannot_draw(problems, name):
    [problem] = problems(sampling={name: 72})
    assert problem == f"error: sampling.{name} = 72 is not a multiple of 16, as Fake needs"


@pytest.mark.parametrize(("resolution", "odd"), [(64, False), (128, False), (144, True)])
def test_the_toy_at_a_size_it_was_not_made_for(problems, resolution, odd):
    found = problems(model={"source": "toy"}, train={"resolution": resolution})
    assert any("made for 64 pixels" in one for one in found) == odd


def test_missing_captions_are_noted_where_the_trigger_stands_in(problems, pictures):
    (pictures / "0.txt").unlink()
    [problem] = problems()
    assert problem == "1 picture of 4 without a caption; the trigger word stands alone there"


def test_lengths_of_captions_do_not_matter_to_batches_of_one(problems):
    with pytest.raises(ConfigError, match=r"train\.group_by_length would have no effect.*a batch is one picture"):
        problems(train={"group_by_length": True})
    assert all("length" not in one for one in problems(train={"group_by_length": True, "batch_size": 2}))
