"""Mistakes that were made once, each with the run that showed it."""

from __future__ import annotations

import json
import shutil

import pytest
import safetensors.torch
import torch

from lorakit.engine import checkpoint
from lorakit.engine.loop import Trainer
from lorakit.engine.run_folder import EVENTS, events_of
from lorakit.engine.source import cache_folder
from lorakit.errors import DataError, RunError
from lorakit.events import PhaseFinished, RunFinished, RunStarted, UpdateFinished, Warned

FOUR = {"train": {"updates": 4}, "sampling": {"prompts": []}}


def until(events, kind, **facts):
    """Read events up to the first of a kind, then stop reading."""
    for event in events:
        if isinstance(event, kind) and all(getattr(event, name) == value for name, value in facts.items()):
            events.close()
            return event
    raise AssertionError(f"there was no {kind.__name__}")


def weights(plan):
    return safetensors.torch.load_file(plan.folder / f"{plan.settings.name}.safetensors")


def test_a_resume_with_other_captions_is_refused(kit, make_plan, pictures):
    plan = make_plan(**FOUR)
    until(kit.train(plan), UpdateFinished, update=2)
    next(pictures.glob("*.txt")).write_text("something else")
    with pytest.raises(RunError, match="not those that the plan was made for"):
        list(kit.resume(plan.folder))


def test_dropout_draws_by_the_seed_and_the_pass(kit, make_plan):
    dropping = {**FOUR, "lora": {"dropout": 0.3}}
    whole, again, stopped = (make_plan(**dropping, name=name) for name in ("whole", "again", "stopped"))
    list(kit.train(whole))
    torch.rand(7)  # somebody else's draws
    list(kit.train(again))
    until(kit.train(stopped), UpdateFinished, update=2)
    list(kit.resume(stopped.folder))
    for other in (again, stopped):
        assert all(torch.equal(tensor, weights(other)[name]) for name, tensor in weights(whole).items())


def test_dropout_leaves_the_random_state_of_the_host_program_alone(kit, make_plan):
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    list(kit.train(make_plan(**FOUR, lora={"dropout": 0.3})))
    assert torch.equal(torch.rand(3), wanted)


def test_any_failure_leaves_what_was_learned(kit, make_plan, monkeypatch):
    plan = make_plan(**FOUR, save={"every": 0})
    loss = Trainer.loss

    def fail(self, *given):
        if self.updates == 3:
            raise DataError("the disk went away")
        return loss(self, *given)

    monkeypatch.setattr(Trainer, "loss", fail)
    with pytest.raises(DataError, match="the disk went away"):
        list(kit.train(plan))
    assert checkpoint.saved(plan.folder) == [3]


def test_a_run_stopped_between_its_file_and_its_end_is_not_complete(kit, make_plan):
    plan = make_plan(train={"updates": 2, "ema": 0.5}, sampling={"prompts": []})
    until(kit.train(plan), PhaseFinished, phase="save")
    assert (plan.folder / "run.safetensors").is_file()
    assert isinstance(list(kit.resume(plan.folder))[-1], RunFinished)
    assert (plan.folder / "run-raw.safetensors").is_file()
    with pytest.raises(RunError, match="is complete"):
        list(kit.resume(plan.folder))


def test_small_weights_in_fp16_are_proved(kit, make_plan):
    plan = make_plan(**FOUR, save={"dtype": "fp16"}, optimizer={"learning_rate": 1e-6})
    assert "scale 1.000" in list(kit.train(plan))[-1].proof


def test_a_run_is_at_least_one_update(kit, make_plan):
    plan = make_plan(train={"epochs": 0.01}, sampling={"prompts": []})
    assert list(kit.train(plan))[-1].update == plan.arithmetic.updates == 1


def test_two_runs_of_one_name_do_not_meet(kit, make_plan):
    plan = make_plan(**FOUR)
    first = kit.train(plan)
    for event in first:
        if isinstance(event, UpdateFinished):
            break
    for second in (kit.train(plan), kit.resume(plan.folder)):
        with pytest.raises(RunError, match="another process is at work"):
            list(second)
    assert isinstance(list(first)[-1], RunFinished)
    assert sum(isinstance(event, RunStarted) for event in events_of(plan.folder)) == 1


def test_a_model_folder_is_found_from_anywhere(kit, make_plan, toy, tmp_path, monkeypatch):
    (tmp_path / "models").mkdir()
    shutil.copytree(toy, tmp_path / "models" / "toy")
    monkeypatch.chdir(tmp_path)
    plan = make_plan(**FOUR, model={"source": "models/toy"})
    until(kit.train(plan), UpdateFinished, update=2)
    monkeypatch.chdir("/")
    assert isinstance(list(kit.resume(plan.folder))[-1], RunFinished)


def test_a_copied_checkpoint_folder_is_no_checkpoint(kit, make_plan):
    plan = make_plan(**FOUR, save={"every": 1})
    until(kit.train(plan), UpdateFinished, update=3)
    newest = checkpoint.folder_of(plan.folder, checkpoint.saved(plan.folder)[-1])
    shutil.copytree(newest, newest.with_name(f"{newest.name}.bak"))
    assert isinstance(list(kit.resume(plan.folder))[-1], RunFinished)


@pytest.mark.parametrize("text", ["[]", "{}", '{"update": "x", "optimizer": {}}'])
def test_a_state_that_is_none_is_told_and_the_one_before_taken(kit, make_plan, text):
    plan = make_plan(**FOUR, save={"every": 1})
    until(kit.train(plan), UpdateFinished, update=3)
    newest = checkpoint.folder_of(plan.folder, checkpoint.saved(plan.folder)[-1])
    (newest / checkpoint.FACTS).write_text(text)
    events = list(kit.resume(plan.folder))
    assert any(isinstance(event, Warned) and newest.name in event.message for event in events)
    assert isinstance(events[-1], RunFinished)


def test_a_state_of_another_size_is_told(kit, make_plan):
    small, large = make_plan(**FOUR, name="small", lora={"rank": 2}), make_plan(**FOUR, name="large")
    for plan in (small, large):
        until(kit.train(plan), UpdateFinished, update=2)
    shutil.copy(
        checkpoint.folder_of(small.folder, 2) / checkpoint.STATE,
        checkpoint.folder_of(large.folder, 2) / checkpoint.STATE,
    )
    with pytest.raises(RunError, match=r"update-000002: state\.safetensors is not as it was written"):
        list(kit.resume(large.folder))


def test_every_torn_cache_file_is_made_anew_in_one_start(kit, make_plan):
    plan = make_plan(**FOUR, name="first")
    list(kit.train(plan))
    for file in cache_folder(plan).glob("??/*.safetensors"):
        file.write_bytes(file.read_bytes()[:-7])
    assert isinstance(list(kit.train(make_plan(**FOUR, name="second")))[-1], RunFinished)


def test_a_line_that_was_cut_does_not_swallow_the_next(kit, make_plan):
    plan = make_plan(**FOUR)
    until(kit.train(plan), UpdateFinished, update=2)
    with (plan.folder / EVENTS).open("a") as file:
        file.write('{"event": "UpdateFin')
    list(kit.resume(plan.folder))
    assert sum(isinstance(event, RunStarted) for event in events_of(plan.folder)) == 2
    lines = (plan.folder / EVENTS).read_text().splitlines()
    assert json.loads(lines[-1])["event"] == "RunFinished"
