"""Several processes teach what one does with the same batch; what happens to one of them happens to all."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch.distributed import HashStore

from lorakit.control import Control
from lorakit.engine import checkpoint
from lorakit.engine.crew import Crew
from lorakit.errors import StallError
from lorakit.events import PhaseStarted, PreviewDrawn, RunStopped, SheetDrawn, UpdateFinished, Validated
from lorakit.history import events_of
from tests.engine.several import SIX, SIX_BY_TWO, asked, codes, facts, off, read, state

pytestmark = pytest.mark.slow


# -- the same result -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "updates"),
    [("qwen", 20), *(pytest.param(one, 2, marks=pytest.mark.thorough) for one in ("flux", "sdxl"))],
)
def test_two_processes_teach_what_one_does_with_the_same_batch(crew, place, family, updates):
    """An epoch is 9 pictures of one shape and 2 of another: batches of 4, 4, 1 and 2 are shared as 2 and 2 or less.

    What one does that makes the same passes, two do to the bit. One that passes each batch at once rounds otherwise.
    """
    settings = {"train__updates": updates, "save__every": updates, "train__caption_dropout": 0.2}
    one = crew.run(1, *asked(place, f"{family}-1", family, train__batch_size=4, **settings))
    same = crew.run(1, *asked(place, f"{family}-1-2", family, train__batch_size=4, **settings), at=shares_of(2))
    two = crew.run(2, *asked(place, f"{family}-2", family, train__batch_size=2, **settings))
    assert codes([*one, *same, *two]) == [0, 0, 0, 0], (one, same, two)
    assert torch.equal(*(state(place, f"{family}-{name}")["adapter"] for name in ("1-2", "2")))
    assert 0 < off(place, f"{family}-1", f"{family}-2") < 1e-5
    first, second = (facts(place, f"{family}-{number}", UpdateFinished) for number in (1, 2))
    assert [event.passes for event in first] == [event.passes for event in second]
    assert [event.loss for event in first] == pytest.approx([event.loss for event in second], rel=1e-4)
    assert [event.grad_norm for event in first] == pytest.approx([event.grad_norm for event in second], rel=1e-3)


def test_accumulated_batches_and_a_process_without_a_share(crew, place):
    """Four processes, batches of 4, of which the smallest holds one picture: three of them have nothing to pass.

    Their four gradients are added here in the order of the processes; torch adds parts of them in other orders.
    """
    settings = {"train__updates": 3, "train__accumulation": 2, "save__every": 3, "train__ema": 0.5}
    one = crew.run(1, *asked(place, "ema-1", train__batch_size=4, **settings), at=shares_of(4))
    four = crew.run(4, *asked(place, "ema-4", train__batch_size=1, **settings), at={"do": "add in order"})
    assert codes([*one, *four]) == [0] * 5, (one, four)
    for kept in ("adapter", "average"):
        assert torch.equal(*(state(place, name)[kept] for name in ("ema-1", "ema-4")))
    first, second = (facts(place, name, UpdateFinished) for name in ("ema-1", "ema-4"))
    assert [event.loss for event in first] == [event.loss for event in second]


@pytest.mark.thorough
def test_how_torch_adds_four_gradients_is_all_that_is_left(crew, place):
    settings = {"train__updates": 3, "save__every": 3}
    one = crew.run(1, *asked(place, "added-1", train__batch_size=4, **settings), at=shares_of(4))
    four = crew.run(4, *asked(place, "added-4", train__batch_size=1, **settings))
    assert codes([*one, *four]) == [0] * 5, (one, four)
    assert off(place, "added-1", "added-4") < 1e-7


def shares_of(processes: int) -> dict[str, object]:
    """Lets one process pass what so many would, one share after another."""
    return {"do": "pass the shares of", "processes": processes}


@pytest.fixture(scope="module")
def told(crew, place) -> str:
    """A run in one process that draws and validates."""
    (one,) = crew.run(1, *asked(place, "told-1", train__batch_size=4, **TOLD))
    assert one.code == 0, one
    return "told-1"


TOLD = {
    "train__updates": 2,
    "validation__every": 2,
    "validation__pictures": 2,
    "sampling__every": 2,
    "sampling__steps": 2,
    "sampling__strengths": "[0, 1]",
    "sampling__prompts": '["sks, one", "sks, two", "sks, three"]',
}


@pytest.mark.parametrize("sharding", ["replicated", "sharded"])
def test_pictures_and_validation_are_divided_and_only_the_first_process_tells(crew, place, told, sharding):
    """Three prompts, and the six pictures of the sheet of strengths; sharded, one process draws one prompt twice."""
    two = crew.run(2, *asked(place, f"told-{sharding}", train__batch_size=2, train__sharding=sharding, **TOLD))
    assert codes(two) == [0, 0], two
    assert "validation held out" in two[0].out
    assert (two[1].out, two[1].err) == ("", "")
    runs = (told, f"told-{sharding}")
    for first, second in zip(*(facts(place, name, Validated) for name in runs), strict=True):
        for name in ("loss", "train_loss", "trigger", "drift", "norm", "loss_by_level"):
            assert getattr(first, name) == pytest.approx(getattr(second, name), rel=1e-3, abs=1e-6), name
    drawn = [[Path(event.path).name for event in facts(place, name, PreviewDrawn)] for name in runs]
    assert drawn == [[f"000002-{number}.png" for number in range(3)]] * 2
    assert [len(facts(place, name, SheetDrawn)) for name in runs] == [1, 1]
    for name in (*drawn[0], "strengths.png"):
        first, second = (read(place / "runs" / run / "samples" / name) for run in runs)
        assert abs(first - second).max() <= 1


def test_the_cache_is_filled_together(crew, place, tmp_path):
    told = crew.run(2, *asked(place, "filled", **{**SIX_BY_TWO, "train__updates": 1}), "--output", str(tmp_path))
    assert codes(told) == [0, 0], told
    assert "12 encoded by 2 processes, 0 reused" in told[0].out
    assert "11 encoded by 2 processes, 0 reused" in told[0].out
    events = events_of(tmp_path / "filled")
    began = {event.phase: event.total for event in events if isinstance(event, PhaseStarted)}
    assert (began["cache text"], began["cache images"]) == (6, 6)  # the first process' own half


# -- going on ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, pytest.param(4, marks=pytest.mark.thorough)])
def test_a_run_goes_on_in_another_number_of_processes(crew, place, whole, count):
    begun = crew.run(2, *asked(place, f"more-{count}", **{**SIX_BY_TWO, "train__updates": 3}))
    again = ["resume", str(place / "runs" / f"more-{count}"), "--set", "train.updates=6", "--gpus", str(count)]
    told = crew.run(count, *again)
    assert codes([*begun, *told]) == [0] * (2 + count), (begun, told)
    assert f"train.gpus = {count}, was 2" in told[0].out
    assert off(place, whole, f"more-{count}") < 1e-5
    assert [event.passes for event in facts(place, f"more-{count}", UpdateFinished)] == [
        event.passes for event in facts(place, whole, UpdateFinished)
    ]


def test_a_batch_that_cannot_be_shared_evenly_is_refused(crew, place):
    begun = crew.run(2, *asked(place, "odd", **{**SIX_BY_TWO, "train__updates": 1}))
    (told,) = crew.run(1, "resume", str(place / "runs" / "odd"), "--set", "train.updates=2", "--gpus", "3")
    assert (codes(begun), told.code) == ([0, 0], 2)
    assert "cannot be shared evenly among 3 GPUs" in told.err
    assert "Take 1, 2 or 4 GPUs" in told.err


# -- what goes wrong -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lost", [0, 1])
def test_a_process_killed_in_an_update_ends_the_others_and_the_run_goes_on_after_a_restart(crew, place, whole, lost):
    """torchrun asks the others to stop; what is left is the last update where the first is among them."""
    command = asked(place, f"killed-{lost}", **SIX_BY_TWO)
    told = crew.run(2, *command, at={"rank": lost, "update": 4, "do": "kill"})
    assert (told[lost].code, told[1 - lost].code) == (-9, 130 if lost else 0), told
    update = 3 if lost else 2
    assert checkpoint.newest(place / "runs" / f"killed-{lost}").update == update
    again = crew.run(2, *command, TORCHELASTIC_RESTART_COUNT="1")
    assert codes(again) == [0, 0], again
    assert f"going on after update {update}" in again[0].out
    assert off(place, whole, f"killed-{lost}") < 1e-5
    once_more = crew.run(2, *command, TORCHELASTIC_RESTART_COUNT="2")
    assert codes(once_more) == [0, 0], once_more  # there is nothing left to do
    assert codes(crew.run(2, *command)) == [2, 2]  # a new run of that name is refused as ever


def test_a_lost_process_is_noticed_where_nobody_watches(crew, place):
    told = crew.run(2, *asked(place, "lost", **SIX_BY_TWO), at={"rank": 1, "update": 4, "do": "kill"}, watched=False)
    assert codes(told) == [1, -9], told
    assert "process 1 on" in told[0].err
    assert "was lost" in told[0].err
    assert checkpoint.newest(place / "runs" / "lost").update == 3


def test_one_that_dies_before_its_second_is_over_is_noticed_too(monkeypatch):
    monkeypatch.setattr("lorakit.engine.crew.SLICE", 0.01)
    monkeypatch.setattr("lorakit.engine.crew.GONE", 0.1)
    monkeypatch.setattr(Crew, "_beat", lambda self: None)  # dead at once
    store = HashStore()
    crews = [Crew(store, number, 2, torch.device("cpu"), 3.0, Control()) for number in range(2)]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda one: one.told({"host": "here"}), crews))
    with pytest.raises(StallError, match="process 1 on here was lost"):
        crews[0].meet()


def test_a_restart_goes_on_with_no_other_run(crew, place, whole):
    told = crew.run(1, *asked(place, whole, **{**SIX, "lora__rank": 2}), TORCHELASTIC_RESTART_COUNT="1")
    assert codes(told) == [2]
    assert "lora.rank = 2, and 4 then" in told[0].err


def test_an_error_in_one_process_stops_all_saved(crew, place):
    told = crew.run(2, *asked(place, "broken", **SIX_BY_TWO), at={"rank": 1, "update": 4, "do": "raise"})
    assert codes(told) == [1, 1]
    assert "process 1 on" in told[0].err
    assert "something broke" in told[0].err
    assert "Traceback" not in told[0].err + told[1].err
    assert checkpoint.newest(place / "runs" / "broken").update == 3


def test_a_stop_asked_of_one_process_stops_all_saved(crew, place):
    name = "stopped"
    told = crew.run(2, *asked(place, name, **SIX_BY_TWO), at={"rank": 1, "update": 3, "do": "terminate"})
    assert told[0].code == 130, told
    (stopped,) = facts(place, name, RunStopped)
    assert stopped.reason == "SIGTERM"
    assert checkpoint.newest(place / "runs" / name).update == stopped.update
    assert stopped.update in (2, 3)


def test_a_stop_is_no_failure_that_torchrun_would_start_again(crew, place):
    command = asked(place, "no-failure", **SIX_BY_TWO)
    told = crew.run(2, *command, at={"rank": 0, "update": 2, "do": "terminate"}, TORCHELASTIC_MAX_RESTARTS="3")
    assert codes(told) == [0, 0], told
    assert len(facts(place, "no-failure", RunStopped)) == 1


def test_a_silent_process_is_given_up_and_named(crew, place):
    command = asked(place, "silent", **{**SIX_BY_TWO, "train__timeout": 5})
    told = crew.run(2, *command, at={"rank": 1, "update": 4, "do": "wait for ever"})
    assert told[0].code == 1
    assert "process 1 on" in told[0].err
    assert "gave no sign of life for 5 s" in told[0].err
    assert "train.timeout" in told[0].err
    assert checkpoint.newest(place / "runs" / "silent").update == 3


def test_other_versions_are_refused(crew, place):
    told = crew.run(2, *asked(place, "versions", **SIX_BY_TWO), at={"rank": 1, "do": "other torch"}, kept=False)
    assert codes(told) == [2, 2]
    assert "process 1 on" in told[0].err
    assert "has torch 1.0, and process 0" in told[0].err
    assert told[1].err == ""
    assert not (place / "runs" / "versions").exists()


def test_another_number_of_processes_than_planned_is_refused(crew, place):
    told = crew.run(2, *asked(place, "three", train__gpus=3, **SIX), watched=False)
    assert codes(told) == [2, 2]
    assert "train.gpus = 3, and 2 processes were started" in told[0].err


def test_torchrun_is_called_with_the_same_command_and_its_exit_code_is_kept(capfd, monkeypatch):
    from lorakit.engine.torchrun import torchrun

    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert torchrun(2, ["--version"]) == 0
    assert capfd.readouterr().out.count("lorakit, version") == 2
    assert torchrun(2, ["train", "--family", "nobody"]) == 2
    assert "no family" in capfd.readouterr().err
