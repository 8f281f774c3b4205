"""int8 products in both directions err as the law of rounding says; layers that would err more choose otherwise."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from lorakit.engine import int8_fast
from lorakit.engine.int8_fast import Int8Fast, crest, rounded, turn

CPU = torch.device("cpu")
INPUTS, OUTPUTS, ROWS = 512, 384, 256


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def steep(rows, channels, times):
    found = rows.clone()
    found[:, :channels] *= times
    return found


@pytest.fixture
def linear():
    made = nn.Linear(INPUTS, OUTPUTS).requires_grad_(False)
    made.weight.copy_(0.03 * normal(OUTPUTS, INPUTS, seed=1))
    made.bias.copy_(normal(OUTPUTS, seed=2))
    return made


def error(found, wanted):
    return float((found - wanted).norm() / wanted.norm())


def both_ways(layer, x, grad):
    x = x.clone().requires_grad_()
    answer = layer(x)
    answer.backward(grad)
    return answer.detach(), x.grad


def law(*crests):
    """Relative error of a product whose factors' rows have these crests: each errs by c / (127 sqrt 12)."""
    return math.sqrt(sum(c**2 for c in crests)) / (127 * math.sqrt(12))


def mean_crest(rows):
    return float((rows.abs().amax(-1) / rows.square().mean(-1).sqrt()).mean())


def test_both_directions_err_as_the_law_of_rounding_says(linear):
    x, grad = normal(ROWS, INPUTS, seed=3), normal(ROWS, OUTPUTS, seed=4)
    answer, back = both_ways(Int8Fast().convert(linear, CPU), x, grad)
    wanted = law(mean_crest(x), mean_crest(linear.weight))
    assert error(answer - linear.bias, x @ linear.weight.T) == pytest.approx(wanted, rel=0.15)
    assert error(back, grad @ linear.weight) == pytest.approx(
        law(mean_crest(grad), mean_crest(linear.weight)), rel=0.15
    )


def test_the_scales_of_uneven_rows_lie_in_the_gradient(linear):
    """One scale for the whole weight errs by three times as much here."""
    uneven = linear.weight * torch.exp(0.5 * normal(OUTPUTS, 1, seed=5))
    linear.weight.copy_(uneven)
    answer, back = both_ways(Int8Fast().convert(linear, CPU), normal(ROWS, INPUTS), normal(ROWS, OUTPUTS, seed=6))
    assert error(answer - linear.bias, normal(ROWS, INPUTS) @ uneven.T) < 0.013
    assert error(back, normal(ROWS, OUTPUTS, seed=6) @ uneven) < 0.02


def looked_at(linear, x, grad):
    layer = Int8Fast().convert(linear, CPU)
    return layer, look(layer, x, grad)


def look(layer, x, grad):
    block = nn.ModuleList([layer])
    return Int8Fast().calibrate([block], lambda: (layer(x.clone().requires_grad_()) * grad).sum())


def test_gentle_inputs_leave_a_layer_as_it_is(linear):
    layer, said = looked_at(linear, normal(ROWS, INPUTS), normal(ROWS, OUTPUTS))
    assert (
        said == "1 layers in int8, 0 with turned inputs, 0 with a full-precision backward, multiplied by torch._int_mm"
    )
    assert layer.crests is None


def test_steep_inputs_turn_a_layer_which_then_errs_less(linear):
    x, grad = steep(normal(ROWS, INPUTS), 1, 200), normal(ROWS, OUTPUTS)
    wanted = x @ linear.weight.T
    before = error(Int8Fast().convert(linear, CPU)(x) - linear.bias, wanted)
    layer, said = looked_at(linear, x, grad)
    assert "1 with turned inputs, 0 with a full" in said
    answer, back = both_ways(layer, x, grad)
    assert before > 0.04
    assert error(answer - linear.bias, wanted) < 0.25 * before
    assert error(back, grad @ linear.weight) < 0.02
    assert error(layer.restored(torch.float32), linear.weight) < 0.02


def test_steep_gradients_are_not_rounded(linear):
    """One loud channel would drown the others in its rounding."""
    x, grad = normal(ROWS, INPUTS), 1e-3 * normal(ROWS, OUTPUTS)
    layer = Int8Fast().convert(linear, CPU)
    grad[:, 0] = 1e6 / layer.scale[0]
    grad[:, 1:200] = 0  # so that its crest is over the limit, which is the root of the channels at most
    grad[:, 200:] *= 1e-3
    assert crest(grad * layer.scale) == pytest.approx(math.sqrt(OUTPUTS), rel=0.01)
    layer, said = looked_at(linear, x, grad)
    assert "0 with a full" in said
    wide = nn.Linear(INPUTS, 4 * OUTPUTS).requires_grad_(False)
    layer, said = looked_at(wide, x, torch.nn.functional.pad(grad, (0, 3 * OUTPUTS)))
    assert "1 with a full" in said
    _, back = both_ways(layer, x, normal(ROWS, 4 * OUTPUTS))
    assert torch.equal(back, normal(ROWS, 4 * OUTPUTS) @ layer.restored(torch.float32))


def test_a_choice_does_not_depend_on_how_often_one_looks(linear):
    x, grad = steep(normal(ROWS, INPUTS), 1, 200), normal(ROWS, OUTPUTS)
    layer, _ = looked_at(linear, x, grad)
    weight = layer.weight.clone()
    look(layer, x, grad)
    assert torch.equal(layer.weight, weight)


@pytest.mark.parametrize("rows", [1, int8_fast.FEW])
def test_few_rows_are_multiplied_with_the_restored_weight(linear, rows):
    layer, x = Int8Fast().convert(linear, CPU), normal(rows, INPUTS)
    assert torch.equal(layer(x), nn.functional.linear(x, layer.restored(torch.float32), linear.bias))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_answers_are_in_the_input_s_format_and_shape(linear, dtype):
    layer, x = Int8Fast().convert(linear, CPU), normal(2, ROWS, INPUTS).to(dtype).requires_grad_()
    answer = layer(x)
    answer.sum().backward()
    assert (answer.dtype, answer.shape, x.grad.dtype) == (dtype, (2, ROWS, OUTPUTS), dtype)


def test_turning_twice_changes_nothing():
    rows = normal(4, 512)
    assert torch.allclose(turn(turn(rows)), rows, atol=1e-5)
    assert torch.allclose(turn(rows).norm(dim=1), rows.norm(dim=1), rtol=1e-5)


def test_rows_of_zeros_stay_zeros():
    values, size = rounded(torch.zeros(2, 8))
    assert not values.any()
    assert torch.isfinite(size).all()
    assert crest(torch.zeros(2, 8)) == 0
