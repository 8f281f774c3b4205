"""What is asked of a run under way: told, done at once, and without a trace in what is learned."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import safetensors.torch
import torch

from lorakit import channel
from lorakit.control import Control
from lorakit.engine import checkpoint
from lorakit.engine.recovery import recover
from lorakit.events import (
    Asked,
    CheckpointRemoved,
    CheckpointSaved,
    PhaseProgress,
    PhaseStarted,
    PreviewDrawn,
    RecoveryStopped,
    RunContinued,
    RunFinished,
    RunPaused,
    RunStopped,
    UpdateFinished,
    Warned,
)
from lorakit.history import events_of

OPTIONS = {
    "train": {"updates": 4, "accumulation": 2, "batch_size": 2, "caption_dropout": 0.4, "ema": 0.6},
    "lora": {"rank": 4, "dropout": 0.2},
    "save": {"every": 100, "dtype": "fp32"},
    "sampling": {"prompts": ["a red circle", "a moon"], "every": 0, "strengths": [1], "guidance": 2},
}
"""Draws of every kind, and a preview that is drawn only at the end, unless somebody asks."""


def weights(plan) -> dict[str, torch.Tensor]:
    newest = checkpoint.folder_of(plan.folder, checkpoint.saved(plan.folder)[-1])
    return safetensors.torch.load_file(newest / checkpoint.STATE)


def same(one, other) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@pytest.fixture(scope="module")
def straight():
    """What a run ends in of which nothing was asked."""
    return {}


@pytest.fixture
def untouched(kit, make_plan, straight):
    if not straight:
        plan = make_plan(name="straight", **OPTIONS)
        list(kit.train(plan))
        straight.update(weights(plan))
    return straight


def kinds(events) -> list[str]:
    return [type(event).__name__ for event in events]


def test_previews_and_checkpoints_that_are_asked_for_change_nothing(kit, make_plan, untouched, of_kind):
    plan, control, events = make_plan(**OPTIONS), Control(), []
    for event in kit.train(plan, control):
        events.append(event)
        if isinstance(event, UpdateFinished):
            control.sample(by="me")
            control.save(by="me")
    assert same(weights(plan), untouched)
    assert [(one.what, one.by) for one in of_kind(events, Asked)] == [("sample", "me"), ("save", "me")] * 4
    assert [one.update for one in of_kind(events, PreviewDrawn)] == [1, 1, 2, 2, 3, 3, 4, 4]
    assert {one.update for one in of_kind(events, CheckpointSaved)} == {1, 2, 3, 4}
    assert all(Path(one.path).is_file() for one in of_kind(events, PreviewDrawn))
    after = events.index(of_kind(events, UpdateFinished)[1])
    assert kinds(events[after : after + 7]) == [
        "UpdateFinished",
        "Asked",
        "Asked",
        "PreviewDrawn",
        "PreviewDrawn",
        "CheckpointSaved",
        "UpdateFinished",
    ]
    assert list(events_of(plan.folder)) == events


def test_what_is_asked_before_training_waits_for_it(kit, make_plan, of_kind):
    plan, control, events = make_plan(**OPTIONS), Control(), []
    control.save()
    control.sample()
    for event in kit.train(plan, control):
        events.append(event)
    asked, drawn, saved = (events.index(of_kind(events, kind)[0]) for kind in (Asked, PreviewDrawn, CheckpointSaved))
    first = events.index(of_kind(events, UpdateFinished)[0])
    assert asked < drawn < first < saved == first + 1
    assert of_kind(events, PreviewDrawn)[0].update == 0
    assert (plan.folder / "samples" / "000000-1.png").is_file()


def test_a_paused_run_holds_its_place_and_does_what_is_asked(kit, make_plan, untouched, of_kind):
    plan, control, events = make_plan(**OPTIONS), Control(), []

    def host():
        while not any(isinstance(one, RunPaused) for one in events):
            waiting.wait(0.01)
        control.sample()
        control.sample()  # nothing was learned since: what is there is told of again
        control.save()
        while len(of_kind(list(events), CheckpointSaved)) < 1:
            waiting.wait(0.01)
        control.resume()

    waiting, other = threading.Event(), threading.Thread(target=host)
    other.start()
    for event in kit.train(plan, control):
        events.append(event)
        if isinstance(event, UpdateFinished) and event.update == 2:
            control.pause()
    other.join()
    held = events[events.index(of_kind(events, RunPaused)[0]) : events.index(of_kind(events, RunContinued)[0])]
    assert not of_kind(held, UpdateFinished)
    assert {one.update for one in of_kind(held, PreviewDrawn)} == {2}
    assert [one.update for one in of_kind(held, CheckpointSaved)] == [2]
    assert [(one.what, one.refused) for one in of_kind(events, Asked)] == [
        ("pause", ""),
        ("sample", ""),
        ("sample", ""),
        ("save", ""),
        ("resume", ""),
    ]
    assert of_kind(events, RunContinued)[0].seconds > 0
    assert same(weights(plan), untouched)


def test_a_paused_run_can_be_stopped_and_goes_on_to_the_same_bits(kit, make_plan, untouched, of_kind):
    plan, control = make_plan(**OPTIONS), Control()
    events = []
    for event in kit.train(plan, control):
        events.append(event)
        if isinstance(event, UpdateFinished) and event.update == 2:
            control.pause()
        if isinstance(event, RunPaused):
            control.stop("enough")
    assert kinds(events[-4:]) == ["Asked", "RunPaused", "Asked", "RunStopped"]
    assert (events[-1].update, events[-1].reason) == (2, "enough")
    assert checkpoint.saved(plan.folder) == [2]
    assert isinstance(list(kit.resume(plan.folder))[-1], RunFinished)
    assert same(weights(plan), untouched)


def test_whoever_closes_a_paused_run_leaves_a_checkpoint(kit, make_plan):
    plan, control = make_plan(**OPTIONS), Control()
    events = kit.train(plan, control)
    for event in events:
        if isinstance(event, UpdateFinished):
            control.pause()
        if isinstance(event, RunPaused):
            events.close()
    assert checkpoint.saved(plan.folder) == [1]
    assert not (plan.folder / channel.FOLDER).exists()


@pytest.mark.parametrize("phase", ["cache text", "load"])
def test_a_pause_before_training_holds_there(kit, make_plan, of_kind, phase):
    plan, control, held = make_plan(**OPTIONS), Control(), []
    for event in kit.train(plan, control):
        if isinstance(event, PhaseStarted) and event.phase == phase:
            control.pause()
        if isinstance(event, RunPaused):
            held.append(event.update)
            control.resume()
    assert held == [0]
    assert isinstance(event, RunFinished)


def test_nothing_to_draw_is_told_and_training_goes_on(kit, make_plan, of_kind):
    plan, control, events = make_plan(**{**OPTIONS, "sampling": {"every": 0, "strengths": []}}), Control(), []
    for event in kit.train(plan, control):
        events.append(event)
        if isinstance(event, UpdateFinished) and event.update == 1:
            control.sample()
    (asked,) = of_kind(events, Asked)
    assert "this run draws nothing" in asked.refused
    assert isinstance(events[-1], RunFinished)


def test_previews_that_are_due_anyway_are_drawn_once(kit, make_plan, of_kind):
    drawn = {**OPTIONS["sampling"], "every": 2}
    plan, control, events = make_plan(**{**OPTIONS, "sampling": drawn}), Control(), []
    for event in kit.train(plan, control):
        events.append(event)
        if isinstance(event, UpdateFinished) and event.update == 2:
            control.sample()
    assert [one.update for one in of_kind(events, PreviewDrawn)] == [2, 2, 4, 4]


def test_checkpoints_that_are_asked_for_count_among_those_that_are_kept(kit, make_plan, of_kind):
    plan, control, events = make_plan(**{**OPTIONS, "save": {"every": 0, "keep": 2}}), Control(), []
    for event in kit.train(plan, control):
        events.append(event)
        if isinstance(event, UpdateFinished):
            control.save()
    assert [one.update for one in of_kind(events, CheckpointRemoved)] == [1, 2]
    assert checkpoint.saved(plan.folder) == [3, 4]


def test_another_process_reaches_a_run_and_a_run_that_ended_cannot_be_reached(kit, make_plan, of_kind):
    plan, events = make_plan(**OPTIONS), []
    for event in kit.train(plan):
        events.append(event)
        if isinstance(event, UpdateFinished) and event.update == 2:
            answer = channel.ask(plan.folder, "stop", "somebody", timeout=60)
            assert (answer.refused, answer.state) == ("", "stopping")
    assert isinstance(events[-1], RunStopped)
    assert [(one.what, one.by) for one in of_kind(events, Asked)] == [("stop", "somebody")]
    assert not (plan.folder / channel.FOLDER).exists()
    with pytest.raises(channel.RunError, match="is not running"):
        channel.ask(plan.folder, "stop", "somebody", timeout=60)


def test_a_run_that_cannot_be_reached_says_so_and_trains(kit, make_plan, tmp_path, of_kind):
    plan = make_plan(**OPTIONS)
    plan.folder.mkdir(parents=True)
    (plan.folder / channel.FOLDER).symlink_to(tmp_path)
    events = list(kit.train(plan))
    assert "`lorakit ctl` cannot reach this run" in of_kind(events, Warned)[0].message
    assert isinstance(events[-1], RunFinished)


def test_making_a_recovery_adapter_can_be_paused_and_draws_nothing(kit, make_plan, tmp_path, of_kind):
    plan, control, events = make_plan(quantization={"name": "int8", "uncorrected": True}), Control(), []
    for event in recover(plan, kit.shelves, control, tmp_path / "made.safetensors"):
        events.append(event)
        if isinstance(event, PhaseProgress) and event.phase == "recover":
            control.sample()
            control.pause()
        if isinstance(event, RunPaused):
            control.stop("enough")
    assert [bool(one.refused) for one in of_kind(events, Asked)] == [True, False, False]
    assert isinstance(events[-1], RecoveryStopped)
