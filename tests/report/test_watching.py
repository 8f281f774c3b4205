"""The report while a run goes on: when it is written, and that nothing about it can stop a run."""

import pytest

from lorakit import history
from lorakit.events import CheckpointSaved, PreviewDrawn, RunFinished, RunStarted, RunStopped, UpdateFinished, Warned
from lorakit.report import reported
from tests.evidence.stories import tell, validated


@pytest.fixture
def folder(pictures, tmp_path):
    return tell(pictures, tmp_path / "runs", [validated(10)])


def update(number):
    return UpdateFinished(update=number, passes=1, epoch=1, loss=1, learning_rate=1, grad_norm=1, seconds=1)


def checkpoint(folder, number):
    return CheckpointSaved(update=number, folder=str(folder), lora="")


@pytest.fixture
def writes(monkeypatch):
    """How often the page was written."""
    done = []
    monkeypatch.setattr("lorakit.report.page.write", lambda found, file, where="": done.append(file))
    return done


def test_it_is_written_once_for_a_checkpoint_after_all_that_belongs_to_it(folder, writes):
    preview = PreviewDrawn(update=1, path="x.png", prompt="a")
    told = [update(1), checkpoint(folder, 1), validated(1), preview, update(2), update(3)]
    counts = [(type(event).__name__, len(writes)) for event in reported(iter(told), folder)]
    assert counts == [
        ("UpdateFinished", 0), ("CheckpointSaved", 0), ("Validated", 0), ("PreviewDrawn", 0), ("UpdateFinished", 1),
        ("UpdateFinished", 1),
    ]  # fmt: skip
    assert writes == [folder / "report.html"]


@pytest.mark.parametrize("end", ["finished", "stopped"])
def test_it_is_there_when_the_end_is_told(folder, end):
    ends = {
        "finished": RunFinished(update=1, folder=str(folder), lora="", proof="", seconds=1),
        "stopped": RunStopped(update=1, folder=str(folder), reason="SIGTERM"),
    }
    for event in reported(iter([update(1), ends[end]]), folder):
        assert (folder / "report.html").is_file() == (event is ends[end])


def test_a_page_that_cannot_be_written_is_one_warning_and_the_run_goes_on(folder):
    (folder / "report.html").mkdir()
    told = [event for number in (1, 2, 3) for event in (update(number), checkpoint(folder, number))]
    found = list(reported(iter(told), folder))
    warnings = [one for one in found if isinstance(one, Warned)]
    assert [one for one in found if not isinstance(one, Warned)] == told
    assert len(warnings) == 1
    assert "report.html could not be written" in warnings[0].message


def test_whatever_goes_wrong_inside_is_a_warning_too(folder, monkeypatch):
    def fails(found):
        raise ZeroDivisionError("of all things")

    monkeypatch.setattr("lorakit.report.page.html", fails)
    end = RunFinished(update=1, folder=str(folder), lora="", proof="", seconds=1)
    found = list(reported(iter([update(1), end]), folder))
    assert [type(one) for one in found] == [UpdateFinished, Warned, RunFinished]


def test_an_error_of_the_run_is_the_error_and_the_page_is_written(folder, writes):
    def failing():
        yield update(1)
        raise RuntimeError("the device is on fire")

    with pytest.raises(RuntimeError, match="on fire"):
        list(reported(failing(), folder))
    assert len(writes) == 1


def test_a_host_that_stops_reading_closes_the_run_first(folder, monkeypatch):
    order = []
    monkeypatch.setattr("lorakit.report.page.write", lambda found, file, where="": order.append("page"))

    def running():
        try:
            yield update(1)
            yield update(2)
        finally:
            order.append("saved")

    events = reported(running(), folder)
    next(events)
    events.close()
    assert order == ["saved", "page"]


def test_ctrl_c_at_once_and_a_run_that_never_began_write_nothing(folder, writes):
    def stopped():
        yield update(1)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(reported(stopped(), folder))

    def refused():
        yield RunStarted(folder=str(folder), name="x", device="cpu")
        raise RuntimeError("another run is at work here")

    with pytest.raises(RuntimeError):
        list(reported(refused(), folder))
    assert not writes


def test_the_recommendation_is_part_of_it(folder):
    list(reported(iter([update(1), checkpoint(folder, 1), update(2)]), folder))
    assert "Recommended: update 10" in (folder / "report.html").read_text()
    assert not (folder / "recommended.json").exists()  # only `lorakit pick` marks
    assert history.read(folder).checkpoints().keys() == {10}
