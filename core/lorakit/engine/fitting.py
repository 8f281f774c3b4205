"""One block's correction: its layers solved for one by one, then fitted to one another."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lorakit.engine.correction import Corrected
from lorakit.engine.regression import Moments, solve
from lorakit.engine.walk import Halt

AT_ONCE = 4  # inputs of one update on a block's output
MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a correction is made.

    `rank` is the adapter's; `samples` are inputs shown, an eighth of which only measure. Each block is fitted on
    `fitted` of them: its layers are solved for `sweeps` times, `ridge` being how far directions that no input shows
    count, and then descend for `descents` steps on the block's output. At the end all corrections descend for
    `updates` steps of `batch` inputs on the model's output. Rates are times the weights' own size.
    """

    rank: int = 16
    samples: int = 256
    fitted: int = 32
    sweeps: int = 2
    ridge: float = 0.01
    descents: int = 60
    rate: float = 0.03
    updates: int = 300
    batch: int = 16
    final_rate: float = 0.06


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
        same error. That is left to `descend`.
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

    def descend(self, recipe: Recipe, check: Callable[[], None]) -> None:
        """Fit all layers together to the block's own output, by gradient; `check` is called before each update."""
        descent = Descent(list(self.layers.values()), recipe.rate, recipe.descents)
        for number in range(recipe.descents):
            check()
            descent.update(self._loss((number * AT_ONCE + offset) % len(self.pairs)) for offset in range(AT_ONCE))
        descent.end()

    def _loss(self, place: int) -> Tensor:
        behind = self.pairs[place][1]
        return distance(tensors(self.student(*behind.args, **behind.kwargs)), self._answers[place])


class Descent:
    """Corrections under gradient descent, in fp32, each at `rate` times its own size; the rate falls evenly to 0."""

    def __init__(self, layers: Sequence[Corrected], rate: float, updates: int) -> None:
        self.done = 0
        self._layers, self._updates = layers, updates
        for layer in layers:
            layer.lora_a, layer.lora_b = (half.float().requires_grad_() for half in (layer.lora_a, layer.lora_b))
        self._halves = [half for layer in layers for half in (layer.lora_a, layer.lora_b)]
        self._peaks = [rate * size for layer in layers for size in _sizes(layer)]
        groups = [{"params": [half], "lr": peak} for half, peak in zip(self._halves, self._peaks, strict=True)]
        self._optimizer = torch.optim.Adam(groups, betas=(0.9, 0.95))

    def update(self, losses: Iterable[Tensor]) -> None:
        """One update on the sum of the losses, which are computed and differentiated one after another."""
        for group, peak in zip(self._optimizer.param_groups, self._peaks, strict=True):
            group["lr"] = peak * (1 - self.done / self._updates)
        self._optimizer.zero_grad()
        with torch.enable_grad():
            for loss in losses:
                loss.backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        self.done += 1

    def end(self) -> None:
        """Bring the corrections to the number format of the file, and to the layout in memory that reading it gives.

        A transposed matrix multiplies with other rounding, and a making that goes on after a stop would differ.
        """
        for layer in self._layers:
            layer.lora_a, layer.lora_b = (
                half.detach().bfloat16().contiguous() for half in (layer.lora_a, layer.lora_b)
            )

    def state(self) -> dict[str, Tensor]:
        """What `restore` goes on from."""
        held = {"done": torch.tensor(self.done)}
        for number, half in enumerate(self._halves):
            moments = self._optimizer.state[half]
            held |= {f"{number}.{name}": moments[name] for name in MOMENTS if name in moments}
            held[f"{number}.half"] = half.detach()
        return {name: one.cpu().contiguous() for name, one in held.items()}

    def restore(self, held: Mapping[str, Tensor]) -> None:
        """Go on from an earlier descent of the same layers."""
        self.done = int(held["done"])
        for number, half in enumerate(self._halves):
            half.data.copy_(held[f"{number}.half"])
            keys = {name: f"{number}.{name}" for name in MOMENTS}
            if keys[MOMENTS[0]] in held:  # or no gradient reached it
                moments = {name: held[key].to(half.device) for name, key in keys.items()}
                self._optimizer.state[half] = {"step": torch.tensor(float(self.done)), **moments}


def _sizes(layer: Corrected) -> Iterator[float]:
    """Root mean squares of both halves; that of the layer's own weight where a half is nothing yet."""
    for half in (layer.lora_a, layer.lora_b):
        size = float(half.detach().square().mean().sqrt())
        yield size or float(weight_of(layer.base).square().mean().sqrt())


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
