"""What training computes, and how long a device takes for it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from lorakit.buckets import Shape
from lorakit.estimate.rates import Rates
from lorakit.plan import Plan
from lorakit.registry import Part
from lorakit.sizes import Linears, Size, Tokens

BYTES = {"bf16": 2, "fp16": 2, "fp32": 4}
COPY = 20e9  # bytes a second from pinned host memory to a GPU: PCIe 4.0 x16 has 31.5 in theory; not measured
FLASH_BACKWARD = 2.5  # the backward pass of attention over its forward pass: it computes the scores again
ADAPTER_KERNELS = (6, 10)  # operations that one adapted layer adds, forward and backward
UPDATE_KERNELS = 60  # of clipping, the optimizer and a batch's draws


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One bucket: how long its samples are, the pixels of its largest picture, how many pictures an epoch shows."""

    tokens: Tokens
    pixels: int
    pictures: int


def cases(plan: Plan, size: Size) -> list[Case]:
    """Every bucket of the plan; where it names no pictures, one at the training resolution."""
    settings, sums = plan.settings, plan.arithmetic
    side = settings.train.resolution
    return [_case(*_shapes(name), count, plan, size) for name, count in sums.buckets] or [
        _case(Shape(side, side), (), 0, plan, size)
    ]


def _shapes(bucket: str) -> tuple[Shape, tuple[Shape, ...]]:
    """The shapes of a bucket, by its name: its pictures', and those of what they see."""
    first, *seen = (Shape(int(width), int(height)) for width, height in re.findall(r"(\d+)x(\d+)", bucket))
    return first, tuple(seen)


def _case(shape: Shape, seen: tuple[Shape, ...], pictures: int, plan: Plan, size: Size) -> Case:
    settings = plan.settings
    side = settings.text_encoder.reference_resolution or 0
    tokens = Tokens(
        image=size.image_tokens(shape),
        reference=sum(map(size.image_tokens, seen)),
        text=size.text.tokens(plan.arithmetic.letters, len(seen) * side * side),
    )
    pixels = max(one.width * one.height for one in (shape, *seen))
    return Case(tokens=tokens, pixels=pixels, pictures=pictures)


def again_share(plan: Plan, size: Size) -> float:
    """The share of blocks that are computed a second time; all of them where free memory decides later."""
    if not plan.settings.train.gradient_checkpointing:
        return 0.0
    planned = plan.settings.speed.recompute
    return min(1.0, planned / size.blocks) if isinstance(planned, int) else 1.0


def flops(plan: Plan, size: Size, tokens: Tokens) -> float:
    """FLOPs of one picture's pass, forward and backward, the adapter's and what checkpointing recomputes included.

    The backward pass has the gradient of every input and of no frozen weight: one forward pass' worth of products.
    """
    again = again_share(plan, size)
    lora, forward = plan.settings.lora, size.attention_flops(tokens)
    return (
        size.block_flops(tokens) * (1 + again)
        + size.block_flops(tokens, once=False)
        + size.outside.flops(tokens) * 2
        + size.adapter_flops(tokens, lora.targets, lora.rank) * (3 + again)
        + forward * (1 + again + FLASH_BACKWARD)
    )


def seconds(plan: Plan, size: Size, tokens: Tokens, batch: int, rates: Rates, quantizer: Part | None) -> float:
    """How long a batch takes on the device, forward and backward: products, attention, everything else by its bytes."""
    settings = plan.settings
    again, lora = again_share(plan, size), settings.lora
    speed, forward = rates.speeds[settings.train.precision], size.attention_flops(tokens) * batch
    products = batch * sum(_products(size, tokens, plan, rates))
    attention = forward * ((1 + again) / speed.attention[0] + FLASH_BACKWARD / speed.attention[1])
    moved = batch * _moved(size, tokens, plan) * BYTES[settings.train.precision]
    restored = _restored(size, again) * quantizer.restoring if quantizer else 0
    device = products + attention + (moved + restored) / rates.bandwidth
    ahead, back = size.running.kernels
    layers = size.adapter_layers(lora.targets)
    first, second = ahead + layers * ADAPTER_KERNELS[0], back + layers * ADAPTER_KERNELS[1]
    host = first * (1 + again) * rates.kernel[0] + second * rates.kernel[1]
    return (max(device, host) if rates.hides else device + host) * rates.slack


def travelling(away: float, rates: Rates) -> float:
    """Seconds that blocks of so many bytes travel in a batch: for the forward pass, and to be computed again."""
    return 2 * away / COPY if rates.hides else 0.0


def gathering(gathered: float, rates: Rates) -> float:
    """Seconds that so many bytes take from the other GPUs of a host."""
    return gathered / rates.link if rates.hides else 0.0


def _products(size: Size, tokens: Tokens, plan: Plan, rates: Rates) -> Iterator[float]:
    """Seconds of matrix products, for each kind of layer at the rate of its width."""
    again, lora = again_share(plan, size), plan.settings.lora
    speed = rates.speeds[plan.settings.train.precision]
    for one in size.linears:
        passes = (1 if one.sees != "once" else 0) + 1 + again
        yield 2 * one.weights * tokens.seen(one.sees, one.share) * passes / speed.at(min(one.inputs, one.outputs))
    yield size.outside.flops(tokens) * 2 / speed.at(max(one.outputs for one in size.linears))
    yield size.adapter_flops(tokens, lora.targets, lora.rank) * (3 + again) / speed.at(lora.rank)


def _moved(size: Size, tokens: Tokens, plan: Plan) -> float:
    """Elements that element-wise operations of one picture read and write."""
    again, running = again_share(plan, size), size.running
    frozen = (running.moved[0] * (1 + again) + running.moved[1]) * size.length(tokens)

    def adapter(one: Linears) -> float:
        """Its answer scaled and added, and added again and scaled backward, into the gradient of the input."""
        return 5 * one.outputs * (1 + again) + 2 * one.outputs + 3 * one.inputs

    return frozen + sum(
        adapter(one) * count * one.blocks * tokens.seen(one.sees, one.share)
        for one, count in size.adapted(plan.settings.lora.targets)
    )


def _restored(size: Size, again: float) -> float:
    """Weights restored in one batch: for each direction that a quantized layer is used in."""
    return sum(one.weights * ((1 if one.sees != "once" else 0) + 1 + again) for one in size.linears)


def drawing(
    plan: Plan, size: Size, rates: Rates, quantizer: Part | None, predictions: int, gathering: float = 0.0
) -> float:
    """Seconds of all previews and of the sheet of strengths: so many forward passes a step, each of which gathers."""
    settings, sampling = plan.settings, plan.settings.sampling
    rounds = _rounds(plan) + len(sampling.strengths)
    if not rounds or not sampling.prompts:
        return 0.0
    speed, total = rates.speeds[settings.train.precision], 0.0
    seen = settings.train.reference_resolution or settings.train.resolution
    text_side = settings.text_encoder.reference_resolution or 0
    for references in sampling.references or ((),) * len(sampling.prompts):
        tokens = Tokens(
            image=size.image_tokens(Shape(sampling.width, sampling.height)),
            reference=size.image_tokens(Shape(seen, seen)) * len(references),
            text=size.text.tokens(plan.arithmetic.letters, len(references) * text_side**2),
        )
        moved = size.running.moved[0] * size.length(tokens) * BYTES[settings.train.precision]
        moved += size.quantizable * quantizer.restoring if quantizer else 0
        widest = max(one.outputs for one in size.linears)
        device = size.linear_flops(tokens) / speed.at(widest) + moved / rates.bandwidth
        device += size.attention_flops(tokens) / speed.attention[0]
        host = size.running.kernels[0] * rates.kernel[0]
        step = (max(device, host) if rates.hides else device + host) * rates.slack
        total += max(step, gathering) * sampling.steps * predictions
    return total * rounds


def _rounds(plan: Plan) -> int:
    """How often previews are drawn."""
    every, sums = plan.settings.sampling.every, plan.arithmetic
    if every == "epoch":
        return max(1, round(sums.epochs)) if sums.images else 0
    return -(-sums.updates // every) if isinstance(every, int) and every else 0
