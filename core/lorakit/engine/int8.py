"""int8 weights by bitsandbytes, with one scale per output channel: 1 byte a weight."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from bitsandbytes.functional import int8_vectorwise_quant
from torch import Tensor, nn

from lorakit.engine.frozen import FrozenLinear

FULL = 127  # the int8 value of a row's largest weight


class Int8Linear(FrozenLinear):
    """`weight` is int8 (out, in), `scale` each row's largest weight in fp32 (out,)."""

    packed: ClassVar = ("weight", "scale")
    weight: Tensor
    scale: Tensor

    def restored(self, dtype: torch.dtype) -> Tensor:
        """The weight (out, in) as numbers of `dtype`."""
        return self.weight.to(dtype) * (self.scale / FULL).to(dtype)[:, None]


class Int8:
    """The quantizer `int8`."""

    version = 1
    packed = Int8Linear.packed

    def convert(self, linear: nn.Linear, device: torch.device) -> nn.Module:
        """The layer in int8, quantized on `device`."""
        # bitsandbytes' kernel takes fp16, as its own layer gives it
        weight, scale, _ = int8_vectorwise_quant(linear.weight.detach().to(device, torch.float16))
        return Int8Linear(linear, {"weight": weight, "scale": scale}).to(device)

    def rebuild(self, linear: nn.Linear, packed: Mapping[str, Tensor]) -> nn.Module:
        """The layer from its packed weight."""
        return Int8Linear(linear, packed)

    def holds(self, module: nn.Module) -> bool:
        """Whether the layer's weight really is int8."""
        return type(module) is Int8Linear and module.weight.dtype == torch.int8
