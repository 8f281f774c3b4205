"""int2 weights packed by optimum-quanto, four to a byte, with a scale and a shift for each group of 64.

quanto's own optimizer stretches the four values from a group's least weight to its largest, which spends two of them
on outliers: a relative error of 45 % on normal weights. Here scale and shift are those that err least: 32 %.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from optimum.quanto import qint2, quantize_weight
from torch import Tensor, nn

from lorakit.engine.frozen import FrozenLinear
from lorakit.errors import ModelError

GROUPS = (64, 32, 16, 8)  # the largest that divides the layer's inputs is used
STRETCHES = tuple(step / 20 for step in range(8, 21))  # of a group's range from least to largest weight
LARGEST = 3  # of two bits
ROUNDS = 5  # of regression
AT_ONCE = 1 << 16  # groups, so that what is computed on the way takes little memory


class Int2Linear(FrozenLinear):
    """`weight` is four values a byte, as quanto packs them; `scale` and `shift` are bf16, one for each group."""

    packed: ClassVar = ("weight", "scale", "shift")
    weight: Tensor
    scale: Tensor
    shift: Tensor

    def restored(self, dtype: torch.dtype) -> Tensor:
        """The weight (out, in) as numbers of `dtype`.

        quanto's own unpacking compiles a C++ extension when it is first used; these shifts say the same.
        """
        values = torch.cat([(self.weight >> bits) & LARGEST for bits in (0, 2, 4, 6)])[: len(self.scale)]
        weight = torch.addcmul(-self.shift.to(dtype), values.to(dtype), self.scale.to(dtype))
        return weight.view(self.out_features, self.in_features)


class Int2:
    """The quantizer `int2`."""

    version = 2
    packed = Int2Linear.packed

    def convert(self, linear: nn.Linear, device: torch.device) -> nn.Module:
        """The layer in two bits, quantized on `device`."""
        weight = linear.weight.detach().to(device, torch.float32)
        size = next((one for one in GROUPS if linear.in_features % one == 0), None)
        if size is None:
            raise ModelError(
                f"a layer of {linear.in_features} inputs cannot be held in int2",
                why=f"its weights come in groups of {' or '.join(map(str, GROUPS))}",
                fix="Choose another quantization.name.",
            )
        parts = [_best(some) for some in torch.split(weight.view(-1, size), AT_ONCE)]
        scale, shift = (torch.cat(one) for one in zip(*parts, strict=True))
        # quanto packs behind a tensor class; the plain tensor in it is what can be moved, stored and loaded
        made = quantize_weight(
            weight, qint2, axis=0, scale=scale.float(), shift=shift.float(), group_size=size, optimized=False
        )
        return Int2Linear(linear, {"weight": made._data._data, "scale": scale, "shift": shift}).to(device)

    def rebuild(self, linear: nn.Linear, packed: Mapping[str, Tensor]) -> nn.Module:
        """The layer from its packed weight."""
        return Int2Linear(linear, packed)

    def holds(self, module: nn.Module) -> bool:
        """Whether the layer's weight really is four values a byte."""
        if type(module) is not Int2Linear:
            return False
        return module.weight.dtype == torch.uint8 and len(module.weight) == -(-len(module.scale) // 4)


def _best(groups: Tensor) -> tuple[Tensor, Tensor]:
    """The scale and shift (groups, 1) in bf16 that err least: a group's values are q scale - shift, q from 0 to 3.

    The best stretch of the range is where regression on the values begins: scale and shift by least squares, values
    anew, and so on. Every round keeps what was better before, because of the rounding to bf16.
    """
    least, largest = groups.amin(1, keepdim=True), groups.amax(1, keepdim=True)
    middle, reach = (least + largest) / 2, ((largest - least) / LARGEST).clamp_min(1e-8)
    best = Fit.of(groups, reach, reach * LARGEST / 2 - middle)
    for stretch in STRETCHES:
        best = best.or_better(Fit.of(groups, reach * stretch, reach * stretch * LARGEST / 2 - middle))
    for _ in range(ROUNDS):
        mean, aim = best.values.mean(1, keepdim=True), groups.mean(1, keepdim=True)
        off = best.values - mean
        scale = (off * (groups - aim)).sum(1, keepdim=True) / off.square().sum(1, keepdim=True).clamp_min(1e-8)
        scale = scale.clamp_min(1e-8)
        best = best.or_better(Fit.of(groups, scale, scale * mean - aim))
    return best.scale, best.shift


@dataclass(frozen=True, slots=True)
class Fit:
    """Groups' scale and shift in bf16, the values that they give each weight, and how far these err."""

    scale: Tensor
    shift: Tensor
    values: Tensor
    error: Tensor

    @staticmethod
    def of(groups: Tensor, scale: Tensor, shift: Tensor) -> Fit:
        """The fit with this scale and shift, (groups, 1) each."""
        scale, shift = scale.bfloat16(), shift.bfloat16()
        values = ((groups + shift.float()) / scale.float()).round_().clamp_(0, LARGEST)
        error = (values * scale.float() - shift.float() - groups).square_().sum(1, keepdim=True)
        return Fit(scale, shift, values, error)

    def or_better(self, other: Fit) -> Fit:
        """The better of both, group by group."""
        better = other.error < self.error
        mine, others = (
            (self.scale, self.shift, self.values, self.error),
            (other.scale, other.shift, other.values, other.error),
        )
        return Fit(*(torch.where(better, theirs, own) for own, theirs in zip(mine, others, strict=True)))
