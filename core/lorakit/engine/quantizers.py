"""Ways to hold the frozen base in fewer bits; only linear layers inside the repeated blocks are touched."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
from torch import nn


class Quantizer(Protocol):
    """One way to hold a frozen linear layer."""

    def convert(self, linear: nn.Linear, device: torch.device) -> nn.Module:
        """The layer in its new form, on `device`, answering in its input's number format."""

    def holds(self, module: nn.Module) -> bool:
        """Whether `module` is a layer in that form."""


class Keep:
    """Full precision: layers stay as they are."""

    def convert(self, linear: nn.Linear, device: torch.device) -> nn.Module:
        """The layer itself, moved."""
        return linear.to(device)

    def holds(self, module: nn.Module) -> bool:
        """Plain linear layers only."""
        return type(module) is nn.Linear


def linears(module: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Linear]]:
    """Every plain linear layer below `module`, as (parent, name in the parent, layer)."""
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear:
                yield parent, name, child


def quantize(block: nn.Module, quantizer: Quantizer, device: torch.device) -> int:
    """Convert every linear layer of a block and move the rest to `device`; the number of layers converted."""
    found = list(linears(block))
    for parent, name, linear in found:
        setattr(parent, name, quantizer.convert(linear, device))
    block.to(device)
    return len(found)


def held(blocks: Sequence[nn.Module], quantizer: Quantizer) -> tuple[int, int]:
    """How many of the blocks' layers `quantizer` holds, and how many plain linear layers are left."""
    modules = [module for block in blocks for module in block.modules()]
    return sum(map(quantizer.holds, modules)), sum(type(module) is nn.Linear for module in modules)
