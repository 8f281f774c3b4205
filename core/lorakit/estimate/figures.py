"""What is estimated, as data: seconds, bytes, FLOPs."""

from __future__ import annotations

from dataclasses import dataclass

from lorakit.problem import Problem
from lorakit.sizes import Tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Memory of the device under one quantization, in bytes: by part while training, and the other phases' peaks."""

    quantization: str
    base: float
    adapter: float
    activations: float
    workspace: float
    context: float
    text: float
    images: float
    previews: float
    away: float = 0.0
    """Bytes of blocks that wait in host memory, which is none of the device's."""
    gathered: float = 0.0
    """Bytes of sharded blocks that come from other GPUs in a batch."""

    @property
    def training(self) -> float:
        """The peak in training."""
        return self.base + self.adapter + self.activations + self.workspace + self.context

    @property
    def peak(self) -> float:
        """The most of all phases."""
        return max(self.training, self.text, self.images, self.previews)


@dataclass(frozen=True, slots=True, kw_only=True)
class Duration:
    """Seconds: of an update at least and as expected, of the whole run's updates, and of its previews as expected."""

    update_floor: float
    update: float
    floor: float
    expected: float
    previews: float

    @property
    def whole(self) -> float:
        """The run as expected, previews included."""
        return self.expected + self.previews


@dataclass(frozen=True, slots=True, kw_only=True)
class Disk:
    """Bytes on disk: the model to fetch, encoded pictures and captions, and all checkpoints that are kept."""

    download: float
    cache: float
    checkpoints: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """What a plan will take; `duration` is None where no device is known, or no pictures are named.

    `trained` are the adapter's parameters, `file` the bytes of what is exported, `tokens` those of a typical sample,
    `flops` those of an update, `host` bytes of the machine's own memory.
    """

    parameters: int
    trained: int
    file: float
    tokens: Tokens
    flops: float
    quantization: str
    memory: tuple[Memory, ...]
    host: float
    disk: Disk
    device: str = ""
    device_memory: float | None = None
    ceiling: float = 0.0
    source: str = ""
    measured: bool = False
    duration: Duration | None = None
    price: float | None = None
    problems: tuple[Problem, ...] = ()

    @property
    def chosen(self) -> Memory | None:
        """Memory under the plan's own quantization, where that is known."""
        return next((one for one in self.memory if one.quantization == self.quantization), None)

    def fits(self, memory: Memory) -> bool | None:
        """Whether the device has that much; None where its memory is not known."""
        return None if self.device_memory is None else memory.peak <= self.device_memory
