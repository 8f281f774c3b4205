"""int2 weights packed by optimum-quanto, four to a byte, with a scale and a shift for each group of 64.

quanto's own optimizer stretches the four values from a group's least weight to its largest, which spends two of them
on outliers: a relative error of 45 % on normal weights. Here the stretch is chosen that errs least, which gives 33 %.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from optimum.quanto import qint2, quantize_weight
from torch import Tensor, nn

from lorakit.engine.frozen import FrozenLinear
from lorakit.errors import ModelError

GROUPS = (64, 32, 16, 8)  # the largest that divides the layer's inputs is used
STRETCHES = tuple(step / 20 for step in range(8, 21))  # of a group's range from least to largest weight
LARGEST = 3  # of two bits


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

    version = 1
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
        scale, shift = _best(weight.view(-1, size))
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
    """The scale and shift (groups, 1) in bf16 that err least: a group's values are q scale - shift, q from 0 to 3."""
    least, largest = groups.amin(1, keepdim=True), groups.amax(1, keepdim=True)
    middle, reach = (least + largest) / 2, ((largest - least) / LARGEST).clamp_min(1e-8)
    best = torch.full_like(middle, torch.inf)
    scale, shift = (torch.empty_like(middle, dtype=torch.bfloat16) for _ in range(2))
    for stretch in STRETCHES:
        step = (reach * stretch).bfloat16()
        start = (step.float() * LARGEST / 2 - middle).bfloat16()
        values = ((groups + start.float()) / step.float()).round_().clamp_(0, LARGEST)
        error = (values * step.float() - start.float() - groups).square_().sum(1, keepdim=True)
        better = error < best
        best = torch.where(better, error, best)
        scale, shift = torch.where(better, step, scale), torch.where(better, start, shift)
    return scale, shift
