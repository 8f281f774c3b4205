"""Losses read while the next update is under way, as on a GPU: the same run, and nothing lost by a bad update."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from lorakit.control import Control
from lorakit.engine import checkpoint, loop
from lorakit.engine.optimizers import adamw
from lorakit.engine.unread import Guard
from lorakit.errors import ConfigError, NotFiniteError, TrainingError
from lorakit.events import RunFinished, RunStopped, UpdateFinished
from lorakit.order import Turn

LATE = {"losses": "late"}
AVERAGED = {"ema": 0.9}


@pytest.fixture
def waiting(monkeypatch):
    """As if reading meant waiting for the device."""
    monkeypatch.setattr(loop, "waits", lambda device: True)


def bad_in(update, samples):
    """Samples of which the one that is only shown in this update is not a number."""

    def broken(index):
        item = samples(index)
        return replace(item, latents=item.latents * float("nan")) if index == update else item

    return broken


def turned(number):
    return [Turn((number % 6,), number, 0)]


# -- the trainer -------------------------------------------------------------------------------------------------


def test_the_same_updates_are_made_and_told_one_behind(make_plan, make_trainer, samples, waiting):
    late, early = (make_trainer(make_plan(speed={"losses": how}, train=AVERAGED)) for how in ("late", "at once"))
    assert late.guard
    assert early.guard is None
    told, known = [], []
    for number in range(5):
        late.start(turned(number), samples)
        told += late.done(lag=1)
        assert len(told) == number
        known.append(early.update(turned(number), samples))
    told += late.done()
    assert told == known
    assert [step.update for step in told] == [1, 2, 3, 4, 5]
    assert torch.equal(late.adapter.flat, early.adapter.flat)
    assert torch.equal(late.average, early.average)


def test_a_bad_update_and_those_after_it_change_nothing(make_plan, make_trainer, samples, waiting):
    late, early = (make_trainer(make_plan(speed={"losses": how}, train=AVERAGED)) for how in ("late", "at once"))
    broken = bad_in(2, samples)
    for number in range(4):
        late.start(turned(number), broken)
    steps = late.done()
    assert [next(steps).update, next(steps).update] == [1, 2]
    with pytest.raises(NotFiniteError, match="update 3 is not a finite number"):
        next(steps)
    early.update(turned(0), broken)
    early.update(turned(1), broken)
    assert late.updates == early.updates == 2
    kept, known = late.state(), early.state()
    assert torch.equal(kept.adapter, known.adapter)
    assert torch.equal(kept.average, known.average)
    for held, meant in zip(kept.optimizer, known.optimizer, strict=True):
        assert held.keys() == meant.keys()
        assert all(torch.equal(held[name], meant[name]) for name in held)


def test_what_is_kept_was_read(make_plan, make_trainer, samples, waiting):
    late = make_trainer(make_plan(speed=LATE))
    late.start(turned(0), samples)
    assert late.state().update == 1
    assert [step.update for step in late.done()] == [1]  # it was read, and is told of all the same
    late.start(turned(1), bad_in(1, samples))
    with pytest.raises(NotFiniteError):
        late.state()
    assert late.state().update == 1


def test_once_spoiled_always_spoiled():
    weights = torch.nn.Parameter(torch.ones(4))
    weights.grad = torch.ones(4)
    optimizer = torch.optim.AdamW([weights], fused=True)
    guard = Guard(optimizer, torch.device("cpu"))
    for numbers in ([1.0, 2.0], [1.0, float("inf")], [1.0, 2.0]):
        guard.see(torch.tensor(numbers))
        optimizer.step()
    assert float(guard.spoiled) == 1
    assert int(optimizer.state[weights]["step"]) == 1


# -- a run -------------------------------------------------------------------------------------------------------

SIX = {"train": {"updates": 6, **AVERAGED}, "save": {"every": 3}, "sampling": {"prompts": ["a"], "every": 2}}


def trained(kit, plan):
    """The updates that a run tells of, and its last event."""
    events = list(kit.train(plan))
    return [one for one in events if isinstance(one, UpdateFinished)], events[-1]


def test_a_run_is_the_same_to_the_byte(kit, make_plan, waiting):
    early, late = (make_plan(name=how[:2], speed={"losses": how}, **SIX) for how in ("at once", "late"))
    (told, last), (known, meant) = trained(kit, late), trained(kit, early)
    assert isinstance(last, RunFinished)
    assert isinstance(meant, RunFinished)
    assert [(one.update, one.passes, one.loss, one.grad_norm) for one in told] == [
        (one.update, one.passes, one.loss, one.grad_norm) for one in known
    ]
    for update in (3, 6):
        mine, other = (checkpoint.load(plan.folder, update, torch.device("cpu")) for plan in (late, early))
        assert torch.equal(mine.adapter, other.adapter)
    assert (late.folder / "samples" / "000002-0.png").read_bytes() == (
        early.folder / "samples" / "000002-0.png"
    ).read_bytes()


def test_a_stop_tells_of_the_update_under_way_and_goes_on_from_it(kit, make_plan, waiting):
    plain = {"train": {"updates": 8}, "save": {"every": 8}}
    early, late = (make_plan(name=how[:2], speed={"losses": how}, **plain) for how in ("at once", "late"))
    control, told = Control(), []
    for event in kit.train(late, control):
        told.append(event)
        if isinstance(event, UpdateFinished) and event.update == 4:
            control.stop("lunch")
    assert isinstance(told[-1], RunStopped)
    assert told[-1].update == 5  # it was started before the fourth was told of
    assert [one.update for one in told if isinstance(one, UpdateFinished)] == [1, 2, 3, 4, 5]
    told += kit.resume(late.folder)
    assert [one.update for one in told if isinstance(one, UpdateFinished)] == list(range(1, 9))
    trained(kit, early)
    mine, other = (checkpoint.load(plan.folder, 8, torch.device("cpu")) for plan in (late, early))
    assert torch.equal(mine.adapter, other.adapter)


def test_a_bad_update_leaves_the_one_before_saved(kit, make_plan, waiting, monkeypatch):
    plan = make_plan(speed=LATE, train={"updates": 8})
    prepare = loop.Batches.of

    def broken(self, turn, samples):
        shown = prepare(self, turn, samples)
        return replace(shown, clean=shown.clean * float("nan")) if turn.first_pass == 4 else shown

    monkeypatch.setattr(loop.Batches, "of", broken)
    with pytest.raises(TrainingError, match="update 5 is not a finite number"):
        list(kit.train(plan))
    assert checkpoint.saved(plan.folder) == [4]
    monkeypatch.undo()
    assert list(kit.resume(plan.folder))[-1].update == 8


def test_an_optimizer_that_cannot_leave_weights_alone_is_refused(make_plan):
    assert make_plan(optimizer={"name": "adamw8bit"}).settings.speed.losses == "at once"
    with pytest.raises(ConfigError, match=r"'late' does not go with optimizer.name = 'adamw8bit'"):
        make_plan(optimizer={"name": "adamw8bit"}, speed=LATE)
    assert make_plan().settings.speed.losses == "late"
    assert make_plan(model={"device": "cpu"}).settings.speed.losses == "at once"
    assert adamw([{"params": [torch.nn.Parameter(torch.ones(1))]}], make_plan().settings.optimizer).defaults["fused"]
