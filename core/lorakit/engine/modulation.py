"""Modulation layers whose answers are worked out ahead, so that their weights never lie on the GPU.

What scales and shifts a block's tokens depends on the noise level (and, in some families, on pooled text) alone: no
gradient flows there, and which levels come next is known. So the layers stay in host memory in full precision, are
brought over one after another for many passes at once, and only their answers are kept. In a large transformer they are
a quarter to a third of all weights.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from lorakit.engine.quantizers import ends_with

Key = TypeVar("Key", bound=Hashable)


class Foreseen(nn.Module):
    """Stands where a modulation layer stood, and answers what was worked out, or works it out where nothing was.

    The answers are those of the layer itself for the same inputs, bit for bit.
    """

    def __init__(self, linear: nn.Linear, ending: str) -> None:
        super().__init__()
        self.ending = ending  # of the layer's name, which says what it gets
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.answer: Tensor | None = None
        self._linear = (linear,)  # in a tuple, so that it is no sub-module, and stays in host memory

    @property
    def linear(self) -> nn.Linear:
        """The layer, in host memory."""
        return self._linear[0]

    def forward(self, x: Tensor) -> Tensor:
        """The layer's answer to x (B, in)."""
        if self.answer is not None:
            return self.answer
        with torch.no_grad():
            return self.ahead([x])[0]

    def ahead(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """The layer's answers to several inputs, its weight being brought to their device once."""
        device = inputs[0].device
        weight = self.linear.weight.to(device, non_blocking=True)
        bias = None if self.linear.bias is None else self.linear.bias.to(device, non_blocking=True)
        return [functional.linear(one, weight, bias) for one in inputs]


class ModulationTable:
    """The modulation layers of all blocks, and their answers for the passes that come next."""

    def __init__(self, endings: Sequence[str]) -> None:
        self._endings = endings
        self.layers: list[Foreseen] = []

    def take(self, block: nn.Module) -> dict[str, nn.Linear]:
        """Put a stand-in for every modulation layer of the block; the layers, by name, for the weights to be put in."""
        found: dict[str, nn.Linear] = {}
        for name, module in list(block.named_modules()):
            ending = next((one for one in self._endings if ends_with(name, one)), None)
            if ending and isinstance(module, nn.Linear):
                found[name] = module
                self.layers.append(Foreseen(module, ending))
                block.set_submodule(name, self.layers[-1])
        return found

    @torch.no_grad()
    def foresee(self, conditions: Mapping[Key, Mapping[str, Tensor]]) -> Foresight[Key]:
        """The answers for passes by their key, each given what its modulation layers get."""
        answers: dict[Key, list[Tensor]] = {key: [] for key in conditions}
        for layer in self.layers if conditions else ():
            inputs = [one[layer.ending] for one in conditions.values()]
            for key, answer in zip(conditions, layer.ahead(inputs), strict=True):
                answers[key].append(answer)
        return Foresight(self.layers, answers)


class Foresight(Generic[Key]):
    """What modulation layers answer in passes to come."""

    def __init__(self, layers: Sequence[Foreseen], answers: Mapping[Key, Sequence[Tensor]]) -> None:
        self._layers, self._answers = layers, answers

    def of(self, key: Key) -> tuple[Tensor, ...]:
        """What the layers answer in the pass called `key`, one after another; nothing where it was not foreseen."""
        return tuple(self._answers.get(key, ()))

    @contextmanager
    def at(self, key: Key) -> Iterator[None]:
        """For a while, the layers answer for the pass called `key`, where it was foreseen."""
        with self.answering(self.of(key)):
            yield

    @contextmanager
    def answering(self, answers: Sequence[Tensor]) -> Iterator[None]:
        """For a while, the layers give these answers, one each, where there are any."""
        try:
            for layer, answer in zip(self._layers, answers, strict=bool(answers)):
                layer.answer = answer
            yield
        finally:
            for layer in self._layers:
                layer.answer = None
