"""Blocks that wait in host memory compute what they computed on the device, and only two are there at a time."""

from __future__ import annotations

import copy
from itertools import pairwise
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lorakit.engine.offload import SLOTS, Conveyor, spread
from lorakit.engine.recomputing import Recomputing
from lorakit.errors import ConfigError
from lorakit.events import PhaseFinished, PreviewDrawn

CPU = torch.device("cpu")


class Block(nn.Module):
    """A frozen layer with something trained beside it, as an adapter is; every second one is larger."""

    def __init__(self, number: int) -> None:
        super().__init__()
        inner = 24 if number % 2 else 16
        self.up, self.down = nn.Linear(8, inner), nn.Linear(inner, 8)
        self.register_buffer("scale", torch.rand(8, 8).t())  # not contiguous
        self.adapter = nn.Identity()

    def forward(self, x):
        return x + self.adapter(self.down(torch.tanh(self.up(x)))) @ self.scale


def model(blocks):
    torch.manual_seed(0)
    return nn.ModuleList(Block(number) for number in range(blocks))


def adapted(blocks):
    """The same adapters for every model."""
    torch.manual_seed(1)
    for block in blocks:
        block.requires_grad_(False)
        block.adapter = nn.Linear(8, 8)
    return blocks


def answers(blocks, x):
    """What the model answers and learns, in training and without."""
    with torch.no_grad():
        drawn = x
        for block in blocks:
            drawn = block(drawn)
    taught = x
    for block in blocks:
        taught = block(taught)
    taught.square().mean().backward()
    return [drawn, taught, *(one.grad for one in blocks.parameters() if one.requires_grad)]


@pytest.mark.parametrize("away", [1, 2, 3, 5, 6])
def test_the_same_answers_and_gradients(away):
    plain, moved = model(6), model(6)
    conveyor = Conveyor(CPU)
    for number in spread(6, away):
        conveyor.take(moved[number])
    for one in (plain, moved):
        Recomputing(adapted(one), keeps_random_state=False)
    x = torch.randn(3, 8)
    for _ in range(3):
        for mine, theirs in zip(answers(plain, x), answers(moved, x), strict=True):
            assert torch.equal(mine, theirs)


def test_no_more_lies_on_the_device_than_two_blocks():
    blocks, conveyor = model(6), Conveyor(CPU)
    before = copy.deepcopy(blocks.state_dict())
    for block in blocks:
        conveyor.take(block)
    Recomputing(adapted(blocks), keeps_random_state=False)
    there = []

    def look(block, *_):
        hosts = {id(one): load.host.untyped_storage().data_ptr() for load in conveyor._loads for one in load.tensors}
        away = [
            one
            for other in blocks
            for one in other.up.parameters()
            if hosts[id(one)] != one.untyped_storage().data_ptr()
        ]
        there.append((block.up.weight.untyped_storage().data_ptr() != hosts[id(block.up.weight)], len(away) // 2))

    for block in blocks:
        block.up.register_forward_pre_hook(lambda up, given, block=block: look(block))
    answers(blocks, torch.randn(3, 8))
    assert len(there) == 6 * 3  # drawn, taught, and computed again
    assert all(here for here, _ in there)
    assert max(count for _, count in there) <= SLOTS
    after = blocks.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_each_block_travels_once_in_each_direction(monkeypatch):
    blocks, conveyor = model(6), Conveyor(CPU)
    for block in blocks:
        conveyor.take(block)
    Recomputing(adapted(blocks), keeps_random_state=False)
    fetched, inner = [], Conveyor._fetch
    monkeypatch.setattr(Conveyor, "_fetch", lambda self, number: fetched.append(number) or inner(self, number))
    taught = torch.randn(3, 8)
    for block in blocks:
        taught = block(taught)
    taught.mean().backward()
    assert fetched == [0, 1, 2, 3, 4, 5, 3, 2, 1, 0]  # the last two are still there when the backward pass begins


def test_what_stays_is_moved_and_what_travels_is_not():
    blocks, conveyor = model(2), Conveyor(CPU)
    conveyor.take(blocks[0])
    places = [one.data_ptr() for one in blocks[0].parameters()]
    conveyor.to_device(blocks)
    assert [one.data_ptr() for one in blocks[0].parameters()] == places
    assert conveyor.held == {id(one) for one in [*blocks[0].parameters(), *blocks[0].buffers()]}


@given(st.integers(1, 80).flatmap(lambda blocks: st.tuples(st.just(blocks), st.integers(1, blocks))))
def test_blocks_that_wait_are_spread(case):
    blocks, away = case
    found = spread(blocks, away)
    assert len(set(found)) == away
    assert found == tuple(sorted(found))
    assert set(found) <= set(range(blocks))
    gaps = [other - one for one, other in pairwise(found)]
    assert not gaps or max(gaps) - min(gaps) <= 1


@pytest.mark.parametrize(
    ("family", "quantization", "away"), [("qwen", "int8", 2), ("flux", "int4", 99), ("sdxl", "none", 3)]
)
def test_a_run_learns_the_same_to_the_bit(kit, pictures, tmp_path, family, quantization, away):
    """With previews and validation in it; FLUX has blocks of two kinds, and SDXL's lie in several parts of its net."""

    def learned(offload):
        plan = kit.plan(
            {
                "family": family,
                "preset": "toy",
                "name": f"run-{offload}",
                "trigger": "sks",
                "output": str(tmp_path / "runs"),
                "data": [{"folder": str(pictures)}],
                "lora": {"rank": 2},
                "quantization": {"name": quantization, "cache": False},
                "train": {"updates": 2, "precision": "fp32", "gradient_checkpointing": True},
                "sampling": {"steps": 2, "every": 1, "strengths": [], "prompts": ["sks"]},
                "validation": {"every": 0},
                "save": {"every": 0, "dtype": "fp32"},
                "speed": {"offload": offload},
            }
        )
        events = list(kit.train(plan))
        note = next(one.note for one in events if isinstance(one, PhaseFinished) and one.phase == "load")
        picture = next(one.path for one in events if isinstance(one, PreviewDrawn))
        return note, Path(picture).read_bytes(), safetensors.torch.load_file(events[-1].lora)

    _, drawn, weights = learned(0)
    note, picture, moved = learned(away)
    assert "blocks wait in host memory" in note
    assert picture == drawn
    assert all(torch.equal(value, moved[name]) for name, value in weights.items())


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"train": {"gradient_checkpointing": False}}, "needs train.gradient_checkpointing"),
        ({"quantization": {"name": "int8-fast"}}, "does not go with quantization.name = 'int8-fast'"),
    ],
)
def test_where_blocks_cannot_travel_the_plan_says_so(make_plan, more, why):
    with pytest.raises(ConfigError, match=why):
        make_plan(speed={"offload": 1}, **{"train": {"gradient_checkpointing": True}, **more})
