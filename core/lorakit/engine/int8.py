"""int8 weights by bitsandbytes, used in the training's own number format.

bitsandbytes' own forward casts bf16 inputs to fp16, which overflows where activations are large, as they are in large
transformers.
Here its int8 weights and scales are brought back to the input's format, layer by layer, in both directions.
"""

from __future__ import annotations

from typing import Any

import torch
from bitsandbytes.nn import Int8Params, Linear8bitLt
from torch import Tensor, nn
from torch.nn import functional

FULL = 127  # the int8 value of a row's largest weight


class Int8Linear(Linear8bitLt):  # type: ignore[misc]
    """A frozen linear layer whose weight is int8 with one scale per output channel."""

    def forward(self, x: Tensor) -> Tensor:
        """x W^T + b in x's number format; W is never kept in that format."""
        answer: Tensor = _Linear.apply(x, self.weight.data, self.weight.SCB, self.bias)  # type: ignore[no-untyped-call]
        return answer


class _Linear(torch.autograd.Function):
    """Both directions through a weight that exists in full only while it is multiplied."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight, scale)
        return functional.linear(x, restored(weight, scale, x.dtype), None if bias is None else bias.to(x.dtype))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        weight, scale = ctx.saved_tensors
        (grad,) = grads
        return grad @ restored(weight, scale, grad.dtype), None, None, None


def restored(weight: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """The int8 weight (out, in) and its rows' largest values (out,) as numbers of `dtype`."""
    return weight.to(dtype) * (scale / FULL).to(dtype)[:, None]


class Int8:
    """The quantizer `int8`."""

    def convert(self, linear: nn.Linear, device: torch.device) -> nn.Module:
        """The layer built directly, which works on a CPU too; diffusers' own loading path asks for a GPU."""
        made = Int8Linear(linear.in_features, linear.out_features, linear.bias is not None, has_fp16_weights=False)
        made.weight = Int8Params(linear.weight.detach(), requires_grad=False, has_fp16_weights=False)
        if linear.bias is not None:
            made.bias = nn.Parameter(linear.bias.detach(), requires_grad=False)
        placed: nn.Module = made.to(device)
        return placed

    def holds(self, module: nn.Module) -> bool:
        """Whether the layer's weight really is int8."""
        return isinstance(module, Int8Linear) and module.weight.dtype == torch.int8
