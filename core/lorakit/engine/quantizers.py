"""Ways to hold the frozen base in fewer bits; only linear layers inside the repeated blocks are touched."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from lorakit.family import Family
from lorakit.registry import Part, Shelf


class Quantizer(Protocol):
    """One way to hold a frozen linear layer."""

    version: int
    """Raised whenever `convert` gives other values, so that nothing stale is served from the cache."""
    packed: tuple[str, ...]
    """Names of the tensors, in the layer's state, that hold its weight."""

    def convert(self, linear: nn.Linear, device: torch.device) -> nn.Module:
        """The layer in its new form, on `device`, answering in its input's number format."""

    def rebuild(self, linear: nn.Linear, packed: Mapping[str, Tensor]) -> nn.Module:
        """The layer in its new form, from the tensors that an earlier one held; `linear` may be without memory."""

    def holds(self, module: nn.Module) -> bool:
        """Whether `module` is a layer in that form."""


@runtime_checkable
class Calibrated(Protocol):
    """A quantizer whose layers choose by a batch how they multiply."""

    def calibrate(self, blocks: Sequence[nn.Module], batch: Callable[[], Tensor]) -> str:
        """Let the layers of the blocks choose by the batch whose loss `batch` gives; what was chosen, in words.

        The batch is the run's first, with an adapter of zeros, whenever the run is begun or gone on with.
        """


Spared = Mapping[str, Quantizer]
"""By the end of a layer's name inside its block, the quantizer that holds it instead of the plan's."""
NOTHING: Spared = MappingProxyType({})


class Keep:
    """Full precision: layers stay as they are."""

    version = 1
    packed = ("weight",)

    def convert(self, linear: nn.Linear, device: torch.device) -> nn.Module:
        """The layer itself, moved."""
        return linear.to(device)

    def rebuild(self, linear: nn.Linear, packed: Mapping[str, Tensor]) -> nn.Module:
        """The layer itself, with its weight."""
        linear.weight = nn.Parameter(packed["weight"], requires_grad=False)
        return linear

    def holds(self, module: nn.Module) -> bool:
        """Plain linear layers only."""
        return type(module) is nn.Linear


def spared_by(family: Family, name: str, shelf: Shelf[Part]) -> Spared:
    """What the family leaves to a finer quantizer under the quantizer called `name`."""
    return {ending: shelf[other].resolve()() for ending, other in family.spared.get(name, {}).items()}


def describe(name: str, quantizer: Quantizer, spared: Spared) -> str:
    """How layers are held, in words that change whenever their values do."""
    finer = [f"{ending} in {type(other).__name__} {other.version}" for ending, other in sorted(spared.items())]
    return ", ".join([f"{name} {quantizer.version}", *finer])


def ends_with(name: str, ending: str) -> bool:
    """Whether a dotted name is `ending` or ends with its parts."""
    return name == ending or name.endswith(f".{ending}")


def chosen(name: str, quantizer: Quantizer, spared: Spared) -> Quantizer:
    """The quantizer of the layer called `name` inside its block."""
    return next((other for ending, other in spared.items() if ends_with(name, ending)), quantizer)


def linears(module: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    """Every plain linear layer below `module`, with its name there."""
    for name, child in list(module.named_modules()):
        if type(child) is nn.Linear:
            yield name, child


def quantize(block: nn.Module, quantizer: Quantizer, device: torch.device, spared: Spared = NOTHING) -> int:
    """Convert every linear layer of a block and move the rest to `device`; the number of layers converted."""
    found = list(linears(block))
    for name, linear in found:
        block.set_submodule(name, chosen(name, quantizer, spared).convert(linear, device))
    block.to(device)
    return len(found)


def held(blocks: Sequence[nn.Module], quantizer: Quantizer, spared: Spared = NOTHING) -> tuple[int, int]:
    """How many of the blocks' layers are held as planned, and how many plain linear layers should not be plain."""
    as_planned = astray = 0
    for block in blocks:
        for name, module in block.named_modules():
            layer = name.replace(".base", "")  # an adapter wraps a layer and calls it its base
            if chosen(layer, quantizer, spared).holds(module):
                as_planned += 1
            elif type(module) is nn.Linear:
                astray += 1
    return as_planned, astray
