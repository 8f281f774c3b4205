"""A frozen linear layer whose weight lies packed, and exists in full only while it is multiplied.

Packed formats bring their own linear layers, and each has a trap for training: bitsandbytes' 8-bit layer casts bf16
inputs to fp16, which overflows in large transformers; its 4-bit layer repacks itself for inference after a preview on
some CPUs and gives no gradient from then on; layers that quantize their activations give wrong gradients. Here only
the packing is theirs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

Restore = Callable[[torch.dtype], Tensor]


class FrozenLinear(nn.Module):
    """x W^T + b in x's number format, for any x (..., in); W is restored in both directions and never kept."""

    packed: ClassVar[tuple[str, ...]]
    """Names of the buffers that hold the weight."""

    def __init__(self, linear: nn.Linear, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        for name in self.packed:
            self.register_buffer(name, tensors[name])
        self.bias = None if linear.bias is None else nn.Parameter(linear.bias.detach(), requires_grad=False)

    def restored(self, dtype: torch.dtype) -> Tensor:
        """The weight (out, in) as numbers of `dtype`."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """The layer's answer, in x's number format."""
        answer: Tensor = _Linear.apply(x, self.bias, self.restored)  # type: ignore[no-untyped-call]
        return answer

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> FrozenLinear:
        """Follow to another device, and keep the number formats of what is packed: they are part of the format."""
        kept = {name: getattr(self, name) for name in self.packed}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, before in kept.items():
            moved = getattr(self, name)
            if moved.dtype != before.dtype:
                setattr(self, name, before.to(moved.device))
        return self


class _Linear(torch.autograd.Function):
    """Both directions through a weight that is restored for each."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor | None, restore: Restore) -> Tensor:
        ctx.restore = restore
        return functional.linear(x, restore(x.dtype), None if bias is None else bias.to(x.dtype))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        return grad @ ctx.restore(grad.dtype), None, None
