"""What a real model computes, keeps and moves at its true dimensions, counted on meta tensors that hold no numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from weakref import finalize

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten
from torch.utils.flop_counter import FlopCounterMode

ATTENTION = "_scaled_dot_product_flash_attention"
COMPUTING = (ATTENTION, "addmm", "mm", "bmm", "convolution", "baddbmm")


@dataclass
class Count:
    """Operations that are more than another view of a tensor, and elements that those other than matrix products read
    and write; the most bytes alive at once, and those alive now."""

    kernels: int = 0
    moved: int = 0
    peak: int = 0
    alive: int = 0
    _seen: set[int] = field(default_factory=set)

    def born(self, tensor: Tensor) -> None:
        """Note the tensor's memory until it is let go."""
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._seen:
            return
        self._seen.add(key)
        self.alive += size
        self.peak = max(self.peak, self.alive)
        finalize(storage, self._gone, key, size)

    def _gone(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.alive -= size


class Counting(TorchDispatchMode):
    """Counts every operation while it is entered."""

    def __init__(self) -> None:
        super().__init__()
        self.count = Count()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        outputs = [one for one in tree_flatten(made)[0] if isinstance(one, Tensor)]
        inputs = [one for one in tree_flatten(args)[0] if isinstance(one, Tensor)]
        if func.is_view or func.overloadpacket.__name__ in ("detach", "_unsafe_view", "empty", "new_empty"):
            return made
        self.count.kernels += 1
        if not func.overloadpacket.__name__.removesuffix("_backward").startswith(COMPUTING):
            self.count.moved += sum(one.numel() for one in (*inputs, *outputs))
        for one in outputs:
            self.count.born(one)
        return made


@contextmanager
def flash_attention() -> Iterator[None]:
    """Attention that keeps no scores, as on a GPU; meta tensors would otherwise take the textbook form."""

    def attend(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> Tensor:
        return torch.ops.aten._scaled_dot_product_flash_attention(query, key, value)[0]

    before = functional.scaled_dot_product_attention
    functional.scaled_dot_product_attention = attend  # type: ignore[assignment]
    try:
        yield
    finally:
        functional.scaled_dot_product_attention = before


def flops(run: Callable[[], Any]) -> int:
    """Floating point operations of `run`, as torch counts them."""
    with FlopCounterMode(display=False) as counter, flash_attention():
        run()
    return counter.get_total_flops()
