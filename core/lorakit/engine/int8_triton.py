"""The kernels of `int8-fast` in Triton: rows rounded to int8, and a product that leaves as scaled numbers.

What torch does in several passes over memory, with an int32 or fp32 of the output's size in between, is one kernel
here. Importing this needs triton; with TRITON_INTERPRET=1 set before, the kernels run on a CPU, slowly.
"""

from __future__ import annotations

import os
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from lorakit.engine.int8_products import LARGEST, LEAST

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
WIDEST = 8192  # numbers of a row that one round of a kernel holds
HALVES = tl.constexpr(12582912.0)  # 1.5 * 2**23: added and taken away again, it rounds an fp32 half to even


def _tiles() -> list[Any]:
    """Sides of the blocks that a product is made of (rows, columns, inner), with warps and stages."""
    if INTERPRETED:  # it can time nothing; small ones meet every edge
        return [triton.Config({"tall": 16, "broad": 32, "deep": 32, "group": 2})]
    sides = (
        (128, 256, 128, 8, 3),
        (128, 128, 128, 8, 3),
        (128, 128, 64, 4, 4),
        (256, 64, 64, 8, 4),
        (64, 128, 64, 4, 4),
        (64, 64, 128, 4, 4),
        (32, 64, 128, 4, 4),
    )
    return [
        triton.Config({"tall": tall, "broad": broad, "deep": deep, "group": 8}, num_warps=warps, num_stages=stages)
        for tall, broad, deep, warps, stages in sides
    ]


@triton.jit
def _values(rows: tl.tensor, columns: tl.tensor, place: tl.tensor, width: tl.tensor, scaled: tl.constexpr) -> tl.tensor:
    """Numbers of one row in fp32, times their columns' scales; zeros past its end."""
    values = tl.load(rows + place, mask=place < width, other=0.0).to(tl.float32)
    if scaled:
        values = values * tl.load(columns + place, mask=place < width, other=0.0)
    return values


@triton.jit
def _round_row(
    rows: tl.tensor,
    columns: tl.tensor,
    codes: tl.tensor,
    sizes: tl.tensor,
    width: tl.tensor,
    stride: tl.tensor,
    largest: tl.constexpr,
    least: tl.constexpr,
    scaled: tl.constexpr,
    block: tl.constexpr,
) -> None:
    """One row in int8, and its scale; it is read twice, the second time from the cache nearest to the unit."""
    row = tl.program_id(0).to(tl.int64)
    rows += row * stride
    codes += row * width
    place = tl.arange(0, block)
    tops = tl.zeros((block,), tl.float32)
    strange = tl.zeros((block,), tl.int32)  # a maximum passes over what is no number
    for start in range(0, width, block):
        values = _values(rows, columns, start + place, width, scaled)
        tops = tl.maximum(tops, tl.abs(values))
        strange = tl.maximum(strange, (values != values).to(tl.int32))
    size = tl.div_rn(tl.maximum(tl.max(tops, 0), least), largest + 0.0)
    size = tl.where(tl.max(strange, 0) > 0, float("nan"), size)
    tl.store(sizes + row, size)
    for start in range(0, width, block):
        values = _values(rows, columns, start + place, width, scaled)
        whole = (tl.div_rn(values, size) + HALVES) - HALVES
        whole = tl.minimum(tl.maximum(whole, -largest), largest)
        tl.store(codes + start + place, whole.to(tl.int8), mask=start + place < width)


@triton.autotune(configs=_tiles(), key=["outputs", "inner", "bucket", "weight_inner"])
@triton.jit
def _multiply(
    codes: tl.tensor,
    weight: tl.tensor,
    answer: tl.tensor,
    sizes: tl.tensor,
    scale: tl.tensor,
    bias: tl.tensor,
    count: tl.tensor,
    outputs: tl.tensor,
    inner: tl.tensor,
    bucket: tl.tensor,
    weight_inner: tl.tensor,
    weight_outputs: tl.tensor,
    scaled: tl.constexpr,
    biased: tl.constexpr,
    tall: tl.constexpr,
    broad: tl.constexpr,
    deep: tl.constexpr,
    group: tl.constexpr,
) -> None:
    """One block of codes (count, inner) times weight (inner, outputs), times scales, plus bias.

    Blocks are taken `group` rows of blocks at a time, so that what they read is still in the cache.
    """
    number = tl.program_id(0)
    downs, acrosses = tl.cdiv(count, tall), tl.cdiv(outputs, broad)
    first = number // (group * acrosses) * group
    high = tl.minimum(downs - first, group)
    down, across = first + number % (group * acrosses) % high, number % (group * acrosses) // high
    row, column, depth = down * tall + tl.arange(0, tall), across * broad + tl.arange(0, broad), tl.arange(0, deep)
    codes += row.to(tl.int64)[:, None] * inner + depth[None, :]
    weight += depth.to(tl.int64)[:, None] * weight_inner + column.to(tl.int64)[None, :] * weight_outputs
    total = tl.zeros((tall, broad), tl.int32)
    for start in range(0, inner, deep):
        left = depth < inner - start
        mine = tl.load(codes, mask=(row < count)[:, None] & left[None, :], other=0)
        theirs = tl.load(weight, mask=left[:, None] & (column < outputs)[None, :], other=0)
        total = tl.dot(mine, theirs, total, out_dtype=tl.int32)
        codes += deep
        weight += deep * weight_inner
    found = total.to(tl.float32) * tl.load(sizes + row, mask=row < count, other=0.0)[:, None]
    if scaled:
        found = found * tl.load(scale + column, mask=column < outputs, other=0.0)[None, :]
    if biased:
        found = found + tl.load(bias + column, mask=column < outputs, other=0.0).to(tl.float32)[None, :]
    place = answer + row.to(tl.int64)[:, None] * outputs + column[None, :]
    tl.store(place, found.to(answer.dtype.element_ty), mask=(row < count)[:, None] & (column < outputs)[None, :])


def rounded(rows: Tensor, columns: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Rows, times their columns' scales, in int8, and the fp32 scale of each (rows, 1)."""
    rows = rows if rows.stride(-1) == 1 else rows.contiguous()
    count, width = rows.shape
    codes = torch.empty(count, width, dtype=torch.int8, device=rows.device)
    sizes = torch.empty(count, 1, device=rows.device)
    block = min(triton.next_power_of_2(width), WIDEST)
    with torch.cuda.device_of(rows):  # type: ignore[no-untyped-call]
        _round_row[(count,)](
            rows,
            columns,
            codes,
            sizes,
            width,
            rows.stride(0),
            largest=LARGEST,
            least=LEAST,
            scaled=columns is not None,
            block=block,
            num_warps=8 if block > 2048 else 4,
        )
    return codes, sizes


def product(
    codes: Tensor,
    sizes: Tensor,
    weight: Tensor,
    dtype: torch.dtype,
    scale: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """codes (rows, inner) times weight (inner, outputs) of any strides, times both scales, plus bias, in `dtype`."""
    (count, inner), outputs = codes.shape, weight.shape[1]
    answer = torch.empty(count, outputs, dtype=dtype, device=codes.device)

    def blocks(meta: dict[str, int]) -> tuple[int]:
        return (triton.cdiv(count, meta["tall"]) * triton.cdiv(outputs, meta["broad"]),)

    with torch.cuda.device_of(codes):  # type: ignore[no-untyped-call]
        _multiply[blocks](
            codes,
            weight,
            answer,
            sizes,
            scale,
            bias,
            count,
            outputs,
            inner,
            triton.next_power_of_2(count),
            *weight.stride(),
            scaled=scale is not None,
            biased=bias is not None,
        )
    return answer
