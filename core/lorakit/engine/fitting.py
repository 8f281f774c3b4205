"""One block's correction: its layers solved for one by one, then fitted to one another."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lorakit.engine.correction import Corrected
from lorakit.engine.regression import Moments, solve
from lorakit.engine.walk import Halt


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a correction is made.

    `rank` is the adapter's; `samples` are inputs shown; `sweeps` how often a block's layers are solved for; `steps`
    gradient steps on the block's output after that, at `rate` times the weights' own size; `ridge` how far directions
    that no input shows count.
    """

    rank: int = 16
    samples: int = 32
    sweeps: int = 2
    steps: int = 60
    rate: float = 0.03
    ridge: float = 0.01


Seen = dict[str, tuple[Tensor, Tensor]]
"""(input, output) of layers in one pass, by name."""


@contextmanager
def watched(block: nn.Module, names: Sequence[str]) -> Iterator[Seen]:
    """What goes in and out of the layers called `names`, pass after pass."""
    seen: Seen = {}

    def note(name: str) -> Any:
        def hook(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            seen[name] = (args[0], output)

        return hook

    handles = [block.get_submodule(name).register_forward_hook(note(name)) for name in names]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def answer(block: nn.Module, halt: Halt) -> Any:
    """What the block answers to a halted pass."""
    with torch.no_grad():
        return block(*halt.args, **halt.kwargs)


class BlockFit:
    """A teacher block and its quantized student, whose layers are Corrected, and the passes halted before both."""

    def __init__(self, teacher: nn.Module, student: nn.Module, pairs: Sequence[tuple[Halt, Halt]]) -> None:
        self.teacher, self.student, self.pairs = teacher, student, pairs
        self.layers = {name: one for name, one in student.named_modules() if isinstance(one, Corrected)}
        self._answers = [tensors(answer(teacher, ahead)) for ahead, _ in pairs]

    def solve(self, recipe: Recipe) -> None:
        """Solve for every layer by itself, on the inputs that it gets with the present corrections of those before.

        What reaches a layer of earlier errors is not its to correct: solved for at once, all layers would correct the
        same error. That is left to `step`.
        """
        found = {name: Moments(layer.in_features, layer.lora_a.device) for name, layer in self.layers.items()}
        with watched(self.student, list(self.layers)) as seen:
            for _, behind in self.pairs:
                answer(self.student, behind)
                for name, moments in found.items():
                    moments.add(seen[name][0])
        for name, layer in self.layers.items():
            weight = self.teacher.get_submodule(name).weight
            assert isinstance(weight, Tensor)
            off = weight.detach().float() - weight_of(layer.base)
            layer.lora_a, layer.lora_b = solve(off, found.pop(name), recipe.rank, recipe.ridge)

    def step(self, recipe: Recipe, check: Callable[[], None]) -> None:
        """Fit all layers together to the block's own output, by gradient; `check` is called before each step."""
        for layer in self.layers.values():
            layer.lora_a, layer.lora_b = (half.float().requires_grad_() for half in (layer.lora_a, layer.lora_b))
        groups = [
            {"params": [half], "lr": recipe.rate * float(half.detach().square().mean().sqrt().clamp_min(1e-6))}
            for layer in self.layers.values()
            for half in (layer.lora_a, layer.lora_b)
        ]
        optimizer = torch.optim.Adam(groups, betas=(0.9, 0.95))
        peaks = [group["lr"] for group in optimizer.param_groups]
        with torch.enable_grad():
            for number in range(recipe.steps):
                check()
                for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                    group["lr"] = peak * (1 - number / recipe.steps)
                optimizer.zero_grad()
                at = [(number * 4 + offset) % len(self.pairs) for offset in range(4)]
                for place in at:
                    behind = self.pairs[place][1]
                    loss = distance(tensors(self.student(*behind.args, **behind.kwargs)), self._answers[place])
                    loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
        for layer in self.layers.values():
            layer.lora_a, layer.lora_b = layer.lora_a.detach(), layer.lora_b.detach()

    def round(self) -> None:
        """Bring the corrections to the number format of the file, and to the layout in memory that reading it gives.

        A transposed matrix multiplies with other rounding, and a making that goes on after a stop would differ.
        """
        for layer in self.layers.values():
            layer.lora_a, layer.lora_b = layer.lora_a.bfloat16().contiguous(), layer.lora_b.bfloat16().contiguous()


def weight_of(layer: nn.Module) -> Tensor:
    """The weight (out, in) that a layer in any form multiplies with, in fp32."""
    restored = getattr(layer, "restored", None)
    if restored is not None:
        weight: Tensor = restored(torch.float32)
        return weight
    assert isinstance(layer.weight, Tensor)
    return layer.weight.detach().float()


def tensors(output: Any) -> list[Tensor]:
    """The tensors of a block's answer, in order."""
    if isinstance(output, Tensor):
        return [output]
    if isinstance(output, Mapping):
        return [one for value in output.values() for one in tensors(value)]
    if isinstance(output, (tuple, list)):
        return [one for value in output for one in tensors(value)]
    return []


def distance(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> Tensor:
    """The squared relative distance, summed over the tensors of an answer."""
    parts = [
        (one.float() - other.float()).square().sum() / other.float().square().sum().clamp_min(1e-12)
        for one, other in zip(found, wanted, strict=True)
    ]
    return torch.stack(parts).sum()
