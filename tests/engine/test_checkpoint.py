"""Checkpoints give back exactly what was saved, appear whole, and training goes on from them to the bit."""

from __future__ import annotations

import pytest
import torch

from lorakit.engine import checkpoint
from lorakit.errors import RunError
from lorakit.order import Turn

CPU = torch.device("cpu")


def advance(trainer, samples, updates: int) -> None:
    for _ in range(updates):
        first = 2 * trainer.updates
        trainer.update([Turn((first % 6,), first, 0), Turn((first % 5,), first + 1, 0)], samples)


def save(run, trainer):
    return checkpoint.save(run, trainer.state(), "x.safetensors", b"the file")


@pytest.mark.parametrize("optimizer", ["adamw", "adamw8bit"])
def test_the_state_comes_back_whole(make_plan, make_trainer, samples, tmp_path, optimizer):
    trainer = make_trainer(make_plan(optimizer={"name": optimizer}, train={"ema": 0.5, "updates": 20}))
    advance(trainer, samples, 2)
    state = trainer.state()
    folder = save(tmp_path, trainer)
    found = checkpoint.load(tmp_path, 2, CPU)
    assert found.update == 2
    assert torch.equal(found.adapter, state.adapter)
    assert torch.equal(found.average, state.average)
    (held,), (known,) = found.optimizer, state.optimizer
    assert set(held) == set(known)
    for name, value in known.items():
        same = torch.equal if isinstance(value, torch.Tensor) else type(value).__eq__
        assert same(held[name], value), name
    assert (folder / "x.safetensors").read_bytes() == b"the file"


@pytest.mark.parametrize("optimizer", ["adamw", "adamw8bit"])
def test_stopping_and_going_on_equals_not_stopping(make_plan, make_trainer, samples, tmp_path, optimizer):
    plan = make_plan(
        optimizer={"name": optimizer, "schedule": "cosine", "warmup": 1},
        train={"ema": 0.5, "updates": 6},
        lora={"targets": ["attn.to_q"]},
    )
    straight, before, after = (make_trainer(plan) for _ in range(3))
    advance(straight, samples, 5)
    advance(before, samples, 2)
    save(tmp_path, before)
    after.restore(checkpoint.load(tmp_path, 2, CPU))
    advance(after, samples, 3)
    assert after.updates == 5
    assert torch.equal(after.adapter.flat, straight.adapter.flat)
    assert torch.equal(after.average, straight.average)
    assert not torch.equal(after.adapter.flat, before.adapter.flat)


@pytest.fixture
def run(make_plan, make_trainer, samples, tmp_path):
    """A run with checkpoints of updates 1, 2 and 3."""
    trainer = make_trainer(make_plan(lora={"rank": 1}))
    for _ in range(3):
        advance(trainer, samples, 1)
        save(tmp_path, trainer)
    return tmp_path


def test_the_newest_are_kept(run):
    assert checkpoint.saved(run) == [1, 2, 3]
    assert checkpoint.prune(run, 2) == [1]
    assert checkpoint.saved(run) == [2, 3]
    assert checkpoint.prune(run, 2) == []


def test_a_checkpoint_cut_short_while_it_was_written_does_not_count(run):
    aside = run / "checkpoints" / ".update-000004"
    aside.mkdir()
    (aside / "state.json").write_text("{}", encoding="utf-8")
    (run / "checkpoints" / "update-000005").mkdir()
    assert checkpoint.saved(run) == [1, 2, 3]


@pytest.mark.parametrize("name", ["state.safetensors", "state.json"])
@pytest.mark.parametrize("harm", [lambda path: path.write_bytes(path.read_bytes()[:9]), lambda path: path.unlink()])
def test_a_damaged_checkpoint_is_named(run, name, harm):
    harm(run / "checkpoints" / "update-000003" / name)
    with pytest.raises(RunError, match=r"update-000003 cannot be read.*the one before"):
        checkpoint.load(run, 3, CPU)


def test_no_checkpoints_is_no_error(tmp_path):
    assert checkpoint.saved(tmp_path) == []
