"""int4 weights by bitsandbytes: NormalFloat4 in blocks of 64, the blocks' scales in 8 bits: 0.516 bytes a weight."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from bitsandbytes.functional import QuantState, dequantize_4bit, quantize_4bit
from torch import Tensor, nn

from lorakit.engine.frozen import FrozenLinear

BLOCK = 64


class Int4Linear(FrozenLinear):
    """`weight` is two values a byte; the rest is bitsandbytes' double quantization of the blocks' scales.

    `absmax` is uint8, one for each block; `nested` fp32, one for each 256 of them; `code` the 256 fp32 values that a
    uint8 stands for; `offset` the scales' mean.
    """

    packed: ClassVar = ("weight", "absmax", "nested", "code", "offset")
    weight: Tensor
    absmax: Tensor
    nested: Tensor
    code: Tensor
    offset: Tensor

    def restored(self, dtype: torch.dtype) -> Tensor:
        """The weight (out, in) as numbers of `dtype`."""
        scales = QuantState(absmax=self.nested, blocksize=256, code=self.code, dtype=torch.float32)
        state = QuantState(
            absmax=self.absmax,
            shape=torch.Size((self.out_features, self.in_features)),
            blocksize=BLOCK,
            quant_type="nf4",
            dtype=dtype,
            offset=self.offset,
            state2=scales,
        )
        weight: Tensor = dequantize_4bit(self.weight, state)
        return weight


class Int4:
    """The quantizer `int4`."""

    version = 1
    packed = Int4Linear.packed

    def convert(self, linear: nn.Linear, device: torch.device) -> nn.Module:
        """The layer in NF4, quantized on `device`."""
        weight, state = quantize_4bit(
            linear.weight.detach().to(device).contiguous(), blocksize=BLOCK, compress_statistics=True, quant_type="nf4"
        )
        nested = state.state2
        tensors = {
            "weight": weight,
            "absmax": state.absmax,
            "nested": nested.absmax,
            "code": nested.code.clone(),  # bitsandbytes shares one among all layers, and safetensors refuses that
            "offset": state.offset,
        }
        return Int4Linear(linear, tensors).to(device)

    def rebuild(self, linear: nn.Linear, packed: Mapping[str, Tensor]) -> nn.Module:
        """The layer from its packed weight."""
        return Int4Linear(linear, packed)

    def holds(self, module: nn.Module) -> bool:
        """Whether the layer's weight really is two values a byte."""
        if type(module) is not Int4Linear:
            return False
        values = module.in_features * module.out_features
        return module.weight.dtype == torch.uint8 and module.weight.numel() == -(-values // 2)
