"""Optimizers hold the state they promise, and the learning rate takes its course."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lorakit.engine.optimizers import adamw, adamw8bit, learning_rate
from lorakit.settings import Optimizer


@pytest.mark.parametrize("make", [adamw, adamw8bit])
def test_it_walks_down_a_hill(make):
    target = torch.randn(600, generator=torch.Generator().manual_seed(0))
    flat = nn.Parameter(torch.zeros(600))
    optimizer = make([{"params": [flat]}], Optimizer(learning_rate=0.05))
    before = float((flat.detach() - target).norm())
    for _ in range(60):
        flat.grad = flat.detach() - target
        optimizer.step()
    assert float((flat.detach() - target).norm()) < 0.3 * before


def test_adamw8bit_holds_8_bit_moments_even_for_a_small_adapter():
    flat = nn.Parameter(torch.ones(1000))  # bitsandbytes itself would keep 32 bits below 4096
    optimizer = adamw8bit([{"params": [flat]}], Optimizer())
    flat.grad = torch.ones(1000)
    optimizer.step()
    state = optimizer.state[flat]
    assert {name: state[name].dtype for name in ("state1", "state2")} == {"state1": torch.uint8, "state2": torch.uint8}


def test_adamw8bit_stays_near_adamw():
    start = torch.randn(2048, generator=torch.Generator().manual_seed(1))
    chance = torch.Generator().manual_seed(2)
    gradients = [torch.randn(2048, generator=chance) for _ in range(20)]
    moved = []
    for make in (adamw, adamw8bit):
        flat = nn.Parameter(start.clone())
        optimizer = make([{"params": [flat]}], Optimizer(learning_rate=1e-2))
        for gradient in gradients:
            flat.grad = gradient.clone()
            optimizer.step()
        moved.append(flat.detach() - start)
    assert (moved[0] - moved[1]).norm() < 0.1 * moved[0].norm()


def rates(updates: int, **options) -> list[float]:
    settings = Optimizer(learning_rate=1.0, **options)
    return [learning_rate(settings, update, updates) for update in range(1, updates + 1)]


def test_constant_stays():
    assert rates(3) == [1.0, 1.0, 1.0]


def test_warm_up_rises_evenly_to_the_peak():
    assert rates(6, warmup=4) == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0, 1.0])


def test_linear_falls_evenly_after_the_warm_up():
    assert rates(6, schedule="linear", warmup=2) == pytest.approx([0.5, 1.0, 1.0, 0.75, 0.5, 0.25])


def test_cosine_falls_slowly_fast_slowly():
    found = rates(5, schedule="cosine")
    assert found == pytest.approx([1.0, 0.904508, 0.654508, 0.345492, 0.095492], abs=1e-6)


def test_a_warm_up_longer_than_the_run_is_no_division_by_zero():
    assert rates(3, schedule="cosine", warmup=3) == pytest.approx([1 / 3, 2 / 3, 1.0])
