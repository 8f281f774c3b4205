"""Blocks whose frozen weights wait in host memory, and are brought over one block ahead of the computation.

The base never changes, so weights travel one way: the host's copy is the only whole one, and what lies on the device is
written over. Two slots of a block's size are used in turn, one computed with while the other is filled. This needs
activation checkpointing: only then does nothing of a block have to stay between its forward and its backward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lorakit.engine.parts import Denoiser

SLOTS = 2
ALIGNED = 256  # bytes that every tensor begins at a multiple of, as CUDA's allocator has it


def spread(blocks: int, away: int) -> tuple[int, ...]:
    """Which of so many blocks wait in host memory, evenly spread, so that others are computed while one travels."""
    return tuple(blocks * (2 * number + 1) // (2 * away) for number in range(away))


@dataclass(frozen=True, slots=True)
class Travelling:
    """The `count` blocks of a model that wait in host memory, all where it has fewer."""

    conveyor: Conveyor
    count: int

    def after(self, filled: Iterator[str], denoiser: Denoiser) -> Iterator[str]:
        """The same names of blocks that were filled one after another, each sent to the host if it is one of those."""
        blocks = denoiser.blocks
        away = spread(len(blocks), min(self.count, len(blocks)))
        for number, name in enumerate(filled):
            if number in away:
                self.conveyor.take(blocks[number])
            yield name

    def finish(self, denoiser: Denoiser) -> None:
        """Move everything of the model that does not travel to the device."""
        self.conveyor.to_device(denoiser.module)

    def note(self, denoiser: Denoiser) -> str:
        """How many wait, in words."""
        blocks = len(denoiser.blocks)
        return f"{min(self.count, blocks)} of {blocks} blocks wait in host memory" if self.count else ""


@dataclass(slots=True)
class _Load:
    """The tensors of one block, where each begins in one row of bytes, and that row in host memory."""

    tensors: list[Tensor]
    places: list[int]
    host: Tensor

    @staticmethod
    def of(tensors: list[Tensor], *, pinned: bool) -> _Load:
        """The tensors, moved to a row of bytes in host memory."""
        places, end = [], 0
        for tensor in tensors:
            places.append(end)
            end += -(-tensor.numel() * tensor.element_size() // ALIGNED) * ALIGNED
        load = _Load(tensors, places, torch.empty(end, dtype=torch.uint8, pin_memory=pinned))
        for tensor, own in zip(tensors, load.on(load.host), strict=True):
            tensor.data = own.copy_(tensor.data)
        return load

    def on(self, row: Tensor) -> Iterator[Tensor]:
        """Every tensor as it lies in a row of bytes, in the order of dimensions that it has in memory."""
        for tensor, place in zip(self.tensors, self.places, strict=True):
            own = row[place : place + tensor.numel() * tensor.element_size()].view(tensor.dtype)
            yield own.as_strided(tensor.shape, _strides(tensor))

    def put(self, row: Tensor) -> None:
        """Let every tensor lie in a row of bytes that has its values."""
        for tensor, own in zip(self.tensors, self.on(row), strict=True):
            tensor.data = own


@dataclass(slots=True)
class _Slot:
    """Bytes on the device, the block that they are of, and when they have arrived."""

    number: int | None = None
    content: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.uint8))
    arrived: Any = None


class Conveyor:
    """Brings the blocks that it has taken to `device`, each when its turn comes."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._loads: list[_Load] = []
        self._slots = [_Slot() for _ in range(SLOTS)]
        self._last = -1
        on_gpu = device.type == "cuda"
        self._stream = torch.cuda.Stream(device) if on_gpu else None  # type: ignore[no-untyped-call]

    def take(self, block: nn.Module) -> None:
        """Freeze the block, whose tensors lie in host memory from now on; an adapter put on it later does not."""
        block.requires_grad_(False)
        load = _Load.of([*block.parameters(), *block.buffers()], pinned=self._stream is not None)
        block.forward = partial(self._through, len(self._loads), block.forward)
        self._loads.append(load)

    @property
    def held(self) -> set[int]:
        """The identities of all tensors that it moves."""
        return {id(tensor) for load in self._loads for tensor in load.tensors}

    def to_device(self, module: nn.Module) -> None:
        """Move everything of a module but what travels."""
        held, device = self.held, self._device
        module._apply(lambda one: one if id(one) in held else one.to(device))  # type: ignore[no-untyped-call]

    def _through(self, number: int, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """A block's forward pass, in training or when it is computed again."""
        here = self._here(number) or self._fetch(number)
        if self._stream is not None:
            torch.cuda.current_stream(self._device).wait_event(here.arrived)
        self._loads[number].put(here.content)
        upwards = number == 0 or number > self._last
        self._last = number
        coming = number + 1 if upwards else number - 1
        if 0 <= coming < len(self._loads) and self._here(coming) is None:
            self._fetch(coming)
        return forward(*args, **kwargs)

    def _here(self, number: int) -> _Slot | None:
        return next((slot for slot in self._slots if slot.number == number), None)

    def _fetch(self, number: int) -> _Slot:
        """Write a block over the one that is done with: a backward pass goes down, and has left what lies above."""
        slot = next(slot for slot in self._slots if slot.number is None or slot.number != self._last)
        if slot.number is not None:
            self._loads[slot.number].put(self._loads[slot.number].host)
        if not slot.content.numel():
            slot.content = torch.empty(self._largest, dtype=torch.uint8, device=self._device)
        host, slot.number = self._loads[number].host, number
        if self._stream is None:
            slot.content[: host.numel()].copy_(host)
            return slot
        self._stream.wait_stream(torch.cuda.current_stream(self._device))  # what still computes with the slot
        with torch.cuda.stream(self._stream):
            slot.content[: host.numel()].copy_(host, non_blocking=True)
            slot.arrived = self._stream.record_event()
        return slot

    @property
    def _largest(self) -> int:
        return max(load.host.numel() for load in self._loads)


def _strides(tensor: Tensor) -> tuple[int, ...]:
    """The tensor's strides, or those of a contiguous one where it has gaps or repeats itself."""
    span = 1 + sum((length - 1) * stride for length, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.stride() if span == tensor.numel() else torch.empty(tensor.shape, device="meta").stride()
