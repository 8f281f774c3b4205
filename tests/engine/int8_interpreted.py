"""The kernels of int8 run by Triton's interpreter, and held against the plain way.

`test_int8_triton.py` runs this file in a process of its own, because TRITON_INTERPRET has to be set before triton is
imported. The interpreter cuts numbers off where a card rounds them to bf16, so that answers in bf16 may be a unit off.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lorakit.engine import int8_fast, int8_triton
from lorakit.engine.int8_fast import Int8Fast
from lorakit.engine.int8_products import TORCH, Triton, rounded

assert int8_triton.INTERPRETED, "set TRITON_INTERPRET=1"
FORMATS = (torch.float32, torch.bfloat16, torch.float16)
CPU = torch.device("cpu")


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def codes(*shape, seed=0):
    return torch.randint(-127, 128, shape, dtype=torch.int8, generator=torch.Generator().manual_seed(seed))


def plainly(codes, sizes, weight, scale=None, bias=None):
    """What a product should be, from a sum that is exact."""
    found = (codes.long() @ weight.long()).float() * sizes
    found = found if scale is None else found * scale
    return found if bias is None else found + bias.float()


def assert_near(found, wanted):
    """To fp32's rounding, where multiplying and adding may be one; to a unit of the last place of smaller formats."""
    unit = {torch.float32: 2e-7, torch.bfloat16: 2**-7, torch.float16: 2**-10}[found.dtype]
    assert torch.allclose(found.float(), wanted.float(), rtol=unit, atol=unit * float(wanted.abs().max()) / 16)


# -- the two kernels -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("scaled", [False, True])
def test_rows_are_rounded_to_the_same_codes(dtype, scaled):
    rows = normal(9, 50)
    rows[1], rows[2] = 0, 1e-30
    rows[3] = torch.arange(50) + 0.5  # halves, which go to the even neighbour once the largest is 127
    rows[3, 0] = 127
    rows = rows.to(dtype)
    scale = torch.rand(50, generator=torch.Generator().manual_seed(1)) if scaled else None
    for one, other in zip(int8_triton.rounded(rows, scale), TORCH.rounded(rows, scale), strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)


def test_halves_go_to_the_even_neighbour():
    rows = torch.tensor([[127, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 3.0]])
    assert int8_triton.rounded(rows)[0].tolist() == [[127, 0, 2, 2, 0, -2, -2, 3]]


def test_rows_wider_than_a_kernel_holds_at_once(monkeypatch):
    rows = normal(3, 100)
    rows[1, 90] = 50.0  # the largest lies in the last piece
    monkeypatch.setattr(int8_triton, "WIDEST", 32)
    for one, other in zip(int8_triton.rounded(rows), rounded(rows), strict=True):
        assert torch.equal(one, other)


@pytest.mark.filterwarnings("ignore:invalid value encountered")  # numpy, which the interpreter computes with
def test_what_is_no_number_stays_none():
    """It must reach the loss, which stops the run."""
    rows = normal(4, 20)
    rows[1, 7], rows[2, 3] = float("nan"), float("inf")
    found, sizes = int8_triton.rounded(rows)
    answer = int8_triton.product(found, sizes, codes(20, 16), torch.float32)
    assert torch.isfinite(answer).all(1).tolist() == [True, False, False, True]


def test_rows_that_lie_apart_or_on_one_another():
    wide = normal(6, 64)
    for rows in (wide[:, 8:40], wide.t(), wide[:1].expand(5, 64), wide[::2]):
        for one, other in zip(int8_triton.rounded(rows), rounded(rows), strict=True):
            assert torch.equal(one, other)


@settings(max_examples=25)
@given(
    rows=st.integers(1, 40),
    inner=st.integers(1, 70),
    outputs=st.integers(1, 70),
    turned=st.booleans(),
    scaled=st.booleans(),
    bias=st.sampled_from([None, *FORMATS]),
    seed=st.integers(0, 99),
)
def test_products_of_any_shape_are_exact_but_for_one_rounding(rows, inner, outputs, turned, scaled, bias, seed):
    """Ragged edges in every direction, and the weight in either orientation."""
    mine, sizes = codes(rows, inner, seed=seed), normal(rows, 1, seed=seed).abs()
    theirs = codes(outputs, inner, seed=seed + 1).T if turned else codes(inner, outputs, seed=seed + 1)
    scale = normal(outputs, seed=seed).abs() if scaled else None
    added = None if bias is None else normal(outputs, seed=seed + 2).to(bias)
    found = int8_triton.product(mine, sizes, theirs, torch.float32, scale, added)
    assert_near(found, plainly(mine, sizes, theirs, scale, added))
    if added is None:
        assert torch.equal(found, plainly(mine, sizes, theirs, scale))


@settings(max_examples=15)
@given(rows=st.integers(1, 6), width=st.integers(1, 80), dtype=st.sampled_from(FORMATS), seed=st.integers(0, 99))
def test_rows_of_any_shape_are_rounded_to_the_same_codes(rows, width, dtype, seed):
    given, scale = normal(rows, width, seed=seed).to(dtype), normal(width, seed=seed + 1).abs()
    for one, other in zip(int8_triton.rounded(given, scale), TORCH.rounded(given, scale), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("dtype", FORMATS)
def test_answers_are_in_the_format_that_is_asked_for(dtype):
    mine, sizes, theirs = codes(20, 40), 1e-3 * normal(20, 1).abs(), codes(40, 24)
    found = int8_triton.product(mine, sizes, theirs, dtype)
    assert found.dtype == dtype
    assert_near(found, plainly(mine, sizes, theirs))


def test_sums_do_not_run_over():
    """The largest codes over the widest layer: 127 * 127 * 15360 is beyond what fp32 counts by ones."""
    mine = torch.full((1, 15360), 127, dtype=torch.int8)
    mine[0, 0] = 126
    found = int8_triton.product(mine, torch.ones(1, 1), mine.T, torch.float32)
    assert found.item() == float(torch.tensor(127 * 127 * 15359 + 126 * 126, dtype=torch.float32))


# -- a layer -------------------------------------------------------------------------------------------------------


def layers(dtype, bias, inputs=40, outputs=24):
    """The same layer twice: multiplied by torch, and by the kernels."""
    linear = nn.Linear(inputs, outputs, bias=bias, dtype=dtype).requires_grad_(False)
    linear.weight.copy_(0.1 * normal(outputs, inputs, seed=1))
    if bias:
        linear.bias.copy_(normal(outputs, seed=2))
    plain, fused = (Int8Fast().convert(linear, CPU) for _ in range(2))
    fused.products = Triton(int8_triton)
    return plain, fused


def both_ways(layer, x):
    x = x.clone().requires_grad_()
    answer = layer(x)
    answer.backward(normal(*answer.shape, seed=9).to(answer.dtype))
    return answer.detach(), x.grad


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize(("shape", "bias"), [((18,), True), ((2, 9), False), ((3, 3, 2), True)])
def test_a_layer_answers_and_passes_gradients_as_the_plain_one(dtype, shape, bias):
    plain, fused = layers(dtype, bias)
    x = normal(*shape, 40, seed=3).to(dtype)
    x.view(-1, 40)[5] = 0
    for one, other in zip(both_ways(fused, x), both_ways(plain, x), strict=True):
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        assert_near(one, other)
    assert fused.products.name == "triton"


def test_few_rows_are_multiplied_with_the_restored_weight():
    plain, fused = layers(torch.float32, True)
    x = normal(int8_fast.FEW, 40)
    assert x.shape[0] == 16
    for one, other in zip(both_ways(fused, x), both_ways(plain, x), strict=True):
        assert torch.equal(one, other)


def test_a_turned_layer_and_one_with_a_full_backward():
    plain, fused = layers(torch.float32, True, inputs=256)
    x = normal(17, 256)
    x[:, 0] *= 300  # so steep that the layer is turned
    for layer in (plain, fused):
        layer.crests = int8_fast.Crests()
        both_ways(layer, x)
        layer.settle()
        assert layer.turned
    for rounds in (True, False):
        plain.rounds_gradients = fused.rounds_gradients = rounds
        for one, other in zip(both_ways(fused, x), both_ways(plain, x), strict=True):
            assert_near(one, other)
    assert fused.products.name == "triton"


def test_what_multiplied_is_told():
    _, fused = layers(torch.float32, True)
    x = normal(24, 40).requires_grad_()
    assert Int8Fast().calibrate([nn.ModuleList([fused])], lambda: fused(x).sum()).endswith("multiplied by triton")
    assert not list(fused.products.news())
