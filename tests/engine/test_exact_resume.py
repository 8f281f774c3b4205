"""A run that is stopped and goes on ends in the same bits as one that was never stopped, however it was stopped."""

from __future__ import annotations

import errno
import os

import pytest
import safetensors.torch
import torch

from lorakit import Kit, Part, hookimpl
from lorakit.config import Layer
from lorakit.control import Control
from lorakit.engine import checkpoint
from lorakit.engine.loop import Trainer
from lorakit.errors import DataError, LorakitError, RunError
from lorakit.events import PreviewDrawn, RunFinished, RunStarted, RunStopped, UpdateFinished, Warned

EVERYTHING = {
    "train": {"updates": 5, "accumulation": 2, "batch_size": 2, "caption_dropout": 0.4, "ema": 0.6},
    "lora": {"rank": 4, "dropout": 0.2},
    "save": {"every": 0, "dtype": "fp32"},
    "sampling": {"prompts": []},
}
"""Draws of every kind, an epoch that ends in the middle of an update, and a running average."""


class Moody(torch.optim.Optimizer):
    """Rounds at random, and keeps state in every place that an optimizer can: per parameter, group, and object."""

    def __init__(self, params) -> None:
        super().__init__(params, {"lr": 1e-3, "distance": 1e-2, "seen": ()})
        self.steps = 0

    @torch.no_grad()
    def step(self, closure=None):
        self.steps += 1
        for group in self.param_groups:
            group["distance"] *= 1.01
            group["seen"] = (*group["seen"][-2:], self.steps)
            for weights in group["params"]:
                state = self.state[weights]
                state.setdefault("moments", [torch.zeros_like(weights), {"second": torch.zeros_like(weights)}])
                first, others = state["moments"]
                first.lerp_(weights.grad, 0.1)
                others["second"].lerp_(weights.grad.square(), 0.01 * self.steps)
                noise = torch.rand_like(weights) - 0.5
                size = group["lr"] * group["distance"] * (1 + group["seen"][0] / 10)
                weights.sub_(size * (first / (others["second"].sqrt() + 1e-8) + noise))

    def state_dict(self):
        return {**super().state_dict(), "steps": self.steps}

    def load_state_dict(self, state_dict):
        super().load_state_dict(state_dict)
        self.steps = state_dict["steps"]


def moody(groups, settings):
    return Moody(list(groups))


class Brings:
    @hookimpl
    def register(self, registry):
        registry.optimizer(Part(name="moody", summary="a test", load=f"{__name__}:moody"))


@pytest.fixture(scope="session")
def kit():
    return Kit(plugins={"moody": Brings()})


def everything(plan) -> dict[str, torch.Tensor]:
    """The newest checkpoint's tensors and the exported files'."""
    (*_, newest) = checkpoint.saved(plan.folder)
    found = safetensors.torch.load_file(checkpoint.folder_of(plan.folder, newest) / checkpoint.STATE)
    for file in plan.folder.glob("*.safetensors"):
        kind = "raw." if "-raw" in file.name else ""
        found |= {f"{kind}{key}": value for key, value in safetensors.torch.load_file(file).items()}
    return found


@pytest.fixture(scope="session")
def straight_ones():
    """What runs that were never stopped ended in, by what they were told."""
    return {}


@pytest.fixture
def never_stopped(kit, make_plan, straight_ones):
    def train(**options):
        if repr(options) not in straight_ones:
            plan = make_plan(name="straight", **options)
            list(kit.train(plan))
            straight_ones[repr(options)] = everything(plan)
        return straight_ones[repr(options)]

    return train


def assert_same(plan, wanted):
    found = everything(plan)
    assert found.keys() == wanted.keys()
    assert [key for key in wanted if not torch.equal(found[key], wanted[key])] == []


def stop_after(events, update):
    for event in events:
        if isinstance(event, UpdateFinished) and event.update == update:
            events.close()


def with_saves(options, **more):
    return {**options, **more, "save": {"every": 100, "dtype": "fp32"}}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("optimizer", ["adamw", "adamw8bit", "moody"])
def test_to_the_bit(kit, make_plan, never_stopped, optimizer, precision):
    options = with_saves(EVERYTHING, optimizer={"name": optimizer, "schedule": "cosine", "warmup": 2})
    options["train"] = {**options["train"], "precision": precision}
    stopped = make_plan(**options)
    stop_after(kit.train(stopped), 1)
    torch.rand(3)  # somebody else's draws
    stop_after(kit.resume(stopped.folder), 3)
    assert isinstance(list(kit.resume(stopped.folder))[-1], RunFinished)
    assert_same(stopped, never_stopped(**options))


def test_state_that_cannot_be_saved_is_told(kit, make_plan, monkeypatch):
    step = Moody.step

    def strange(self, closure=None):
        step(self)
        self.param_groups[0]["memory"] = object()

    monkeypatch.setattr(Moody, "step", strange)
    plan = make_plan(**with_saves(EVERYTHING, optimizer={"name": "moody"}, train={"updates": 1}))
    with pytest.raises(RunError, match=r"state cannot be saved: groups\.0\.memory is a object"):
        list(kit.train(plan))


@pytest.mark.parametrize("optimizer", ["adamw", "moody"])
def test_previews_do_not_change_the_training(kit, make_plan, never_stopped, optimizer):
    options = with_saves(EVERYTHING, optimizer={"name": optimizer})
    drawn = {"prompts": ["a red circle"], "every": 1, "guidance": 2, "strengths": [0, 1]}
    plan = make_plan(**{**options, "sampling": drawn})
    list(kit.train(plan))
    assert_same(plan, never_stopped(**options))


# -- ways to stop ------------------------------------------------------------------------------------------------


def no_space(*arguments, **options):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def by_control(kit, plan, patch):
    control = Control()
    for event in kit.train(plan, control):
        if isinstance(event, UpdateFinished) and event.update == 3:
            control.stop("SIGTERM")
    assert isinstance(event, RunStopped)


def by_closing(kit, plan, patch):
    stop_after(kit.train(plan), 3)


def by_error(kit, plan, patch):
    inner, calls = Trainer.loss, []

    def loss(self, *given):
        calls.append(1)
        if len(calls) == 8:  # the second batch of the fourth update
            raise DataError("the disk went away")
        return inner(self, *given)

    patch.setattr(Trainer, "loss", loss)
    with pytest.raises(DataError, match="the disk went away"):
        list(kit.train(plan))


def by_interrupt(kit, plan, patch):
    inner = torch.optim.AdamW.step

    def step(self, *given):
        if len(self.state) and next(iter(self.state.values()))["step"] == 3:
            raise KeyboardInterrupt  # weights may be torn: nothing is saved
        return inner(self, *given)

    patch.setattr(torch.optim.AdamW, "step", step)
    with pytest.raises(KeyboardInterrupt):
        list(kit.train(plan))
    assert checkpoint.saved(plan.folder) == []


def by_a_disk_that_fills(kit, plan, patch):
    """The disk is full when a checkpoint is due."""
    ends = kit.train(plan.with_settings(save=plan.settings.save.model_copy(update={"every": 2})))
    for event in ends:
        if isinstance(event, UpdateFinished) and event.update == 3:
            patch.setattr(os, "fsync", no_space)
            break
    with pytest.raises(LorakitError, match=r"cannot be written.*No space left"):
        list(ends)
    assert checkpoint.saved(plan.folder) == [2]


@pytest.mark.parametrize("stop", [by_control, by_closing, by_error, by_interrupt, by_a_disk_that_fills])
def test_however_it_was_stopped(kit, make_plan, never_stopped, monkeypatch, stop):
    options = with_saves(EVERYTHING)
    stopped = make_plan(**options)
    with monkeypatch.context() as patch:
        stop(kit, stopped, patch)
    assert isinstance(list(kit.resume(stopped.folder))[-1], RunFinished)
    assert {one for one in (stopped.folder / "checkpoints").iterdir() if one.name.startswith(".")} == set()
    assert_same(stopped, never_stopped(**options))


def test_a_full_disk_under_the_journal_is_told(kit, make_plan):
    plan = make_plan(**EVERYTHING)
    stop_after(kit.train(plan), 1)
    journal = plan.folder / "events.jsonl"
    journal.unlink()
    journal.symlink_to("/dev/full")
    with pytest.raises(RunError, match=r"events\.jsonl cannot be written.*No space left"):
        list(kit.resume(plan.folder))


def test_pictures_that_a_stop_left_undrawn_are_drawn_when_the_run_goes_on(kit, make_plan, of_kind):
    drawn = {"prompts": ["a red circle", "a blue star", "a square"], "every": 2, "strengths": []}
    options = {**with_saves(EVERYTHING), "train": {"updates": 4}, "sampling": drawn}
    straight, stopped = (make_plan(name=name, **options) for name in ("straight", "stopped"))
    list(kit.train(straight))
    for update in (2, 4):
        events = kit.train(stopped) if update == 2 else kit.resume(stopped.folder)
        for event in events:
            if isinstance(event, PreviewDrawn) and event.update == update:
                events.close()  # after the first of three
    names = [path.name for path in sorted((stopped.folder / "samples").iterdir())]
    assert names == ["000002-0.png", "000002-1.png", "000002-2.png", "000004-0.png"]
    last = of_kind(kit.resume(stopped.folder), PreviewDrawn)
    assert [event.prompt for event in last] == ["a blue star", "a square"]
    for path in (straight.folder / "samples").iterdir():
        assert path.read_bytes() == (stopped.folder / "samples" / path.name).read_bytes()


# -- what may change ---------------------------------------------------------------------------------------------


def said(**tables):
    return [Layer(tables, "--set")]


def test_a_finished_run_goes_on_to_what_a_longer_one_is(kit, make_plan, never_stopped, of_kind):
    options = with_saves(EVERYTHING)
    short = make_plan(name="straight", **{**options, "train": {**options["train"], "updates": 3}})
    list(kit.train(short))
    events = list(kit.resume(short.folder, changes=said(train={"updates": 5})))
    (began,) = of_kind(events, RunStarted)
    assert began.resumed_from == 3
    assert "train.updates = 5, was 3" in began.changed
    assert_same(short, never_stopped(**options))
    with pytest.raises(RunError, match="is complete: 5 updates"):
        list(kit.resume(short.folder))


def test_previews_and_saves_may_change(kit, make_plan, of_kind):
    plan = make_plan(**EVERYTHING)
    stop_after(kit.train(plan), 2)
    changes = said(sampling={"prompts": ["a moon"], "every": 9}, save={"every": 3, "keep": 1})
    events = list(kit.resume(plan.folder, changes=changes))
    assert [(one.update, one.prompt) for one in of_kind(events, PreviewDrawn)] == [(5, "a moon")]
    assert checkpoint.saved(plan.folder) == [5]
    from lorakit.engine.run_folder import read_plan

    kept = read_plan(plan.folder)
    assert kept.settings.save.keep == 1
    assert kept.choices["save.keep"].decided_by == "--set"
    assert kept.choices["optimizer.learning_rate"] == plan.choices["optimizer.learning_rate"]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"optimizer": {"learning_rate": 0.5}}, "optimizer.learning_rate = 0.5, and 0.001 then"),
        ({"seed": 3, "lora": {"rank": 8}}, r"seed = 3, and 0 then; lora.rank = 8, and 4 then"),
        ({"train": {"batch_size": 1}}, "train.batch_size = 1, and 2 then"),
        ({"train": {"updates": 1}}, "has done 2 updates, and train.updates = 1 is less"),
        ({"train": {"updats": 1}}, "Did you mean train.updates"),
        ({"sampling": {"recipe": "crad"}}, "has no sampling recipe"),
    ],
)
def test_what_may_not_change_is_refused_by_name(kit, make_plan, changes, says):
    plan = make_plan(**EVERYTHING)
    stop_after(kit.train(plan), 2)
    before = (plan.folder / "plan.json").read_bytes()
    with pytest.raises(LorakitError, match=says):
        list(kit.resume(plan.folder, changes=said(**changes)))
    assert (plan.folder / "plan.json").read_bytes() == before


def test_a_plan_that_was_edited_is_refused_by_name(kit, make_plan):
    plan = make_plan(**EVERYTHING)
    stop_after(kit.train(plan), 2)
    file = plan.folder / "plan.json"
    file.write_text(file.read_text().replace('"learning_rate": 0.001', '"learning_rate": 0.002'))
    with pytest.raises(RunError, match=r"not the one that the run began with: optimizer\.learning_rate = 0\.002"):
        list(kit.resume(plan.folder))


def test_a_stretched_schedule_and_a_short_last_update_are_told(kit, make_plan, of_kind):
    plan = make_plan(
        **{
            **with_saves(EVERYTHING, optimizer={"schedule": "linear"}),
            "train": {"epochs": 1, "accumulation": 3},
        }
    )
    assert plan.arithmetic.batches % 3
    list(kit.train(plan))
    events = list(kit.resume(plan.folder, changes=said(train={"epochs": 2})))
    messages = [one.message for one in of_kind(events, Warned)]
    assert any("runs over the new length" in one for one in messages)
    assert any("took 2 batches fewer than an update takes" in one for one in messages)


def test_a_finished_run_without_a_checkpoint_cannot_go_on(kit, make_plan):
    plan = make_plan(**{**EVERYTHING, "train": {"updates": 1}})
    list(kit.train(plan))
    with pytest.raises(RunError, match="left no checkpoint to go on from"):
        list(kit.resume(plan.folder, changes=said(train={"updates": 2})))
