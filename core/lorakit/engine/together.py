"""All corrections of a model fitted together, to what the full-precision model answered.

That model is gone by then: its answers were kept as its blocks passed by. The one that descends is the quantized one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

import torch
from torch import Tensor, nn

from lorakit.engine.calibration import Shown
from lorakit.engine.correction import Corrected, correct
from lorakit.engine.draws import seed_of
from lorakit.engine.fitting import Descent, Recipe
from lorakit.engine.parts import Denoiser
from lorakit.engine.quantizers import linears


def take_in(module: nn.Module, rank: int) -> None:
    """Correct every linear layer that is still plain, by nothing for a start: A is random, and B is zero.

    Layers outside the blocks are not quantized, and can take what is left of the blocks' errors.
    """
    for name, layer in list(linears(module)):
        draws = torch.Generator().manual_seed(seed_of(name, 0, 0))
        lora_a = torch.randn(rank, layer.in_features, generator=draws) / layer.in_features**0.5
        correct(module, {name: (lora_a, torch.zeros(layer.out_features, rank))})


class Together:
    """A corrected model, the inputs that it was shown and what it should have answered, (1, C, H, W) each.

    `at_once` inputs go through the model at once, which decides memory and not the result.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        shown: Sequence[Shown],
        wanted: Sequence[Tensor],
        recipe: Recipe,
        at_once: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self._denoiser, self._shown, self._wanted = denoiser, shown, [one.float().cpu() for one in wanted]
        self._recipe, self._at_once, self._device, self._dtype = recipe, at_once, device, dtype
        self._size = float(torch.stack([one.square().mean() for one in self._wanted]).mean())
        layers = [one for one in denoiser.module.modules() if isinstance(one, Corrected)]
        self.descent = Descent(layers, recipe.final_rate, max(1, recipe.updates))

    def update(self, among: Sequence[int]) -> None:
        """One update on the next of the inputs whose numbers are `among`."""
        first, size = self.descent.done * self._recipe.batch, self._recipe.batch
        chosen = [_chosen(among, place) for place in range(first, first + size)]
        self.descent.update(one / (self._size * size) for one in self._off(chosen))

    @torch.no_grad()
    def error(self, numbers: Sequence[int]) -> float:
        """The relative error of the answers to the inputs with these numbers."""
        off = sum(float(one) for one in self._off(numbers))
        return float((off / sum(float(self._wanted[number].square().mean()) for number in numbers)) ** 0.5)

    def _off(self, numbers: Sequence[int]) -> Iterator[Tensor]:
        """Mean squares of the errors of answers, summed over as many inputs as go through at once."""
        for some in self._batches(numbers):
            shown = Shown.collate([self._shown[one] for one in some])
            found = self._denoiser.predict(*shown.to(self._device, self._dtype))
            wanted = torch.cat([self._wanted[one] for one in some]).to(self._device)
            yield (found.float() - wanted).square().flatten(1).mean(1).sum()

    def _batches(self, numbers: Sequence[int]) -> Iterator[list[int]]:
        def shapes(number: int) -> tuple[torch.Size, ...]:
            return self._shown[number].shapes

        for _, group in groupby(sorted(numbers, key=shapes), key=shapes):
            held = list(group)
            for start in range(0, len(held), self._at_once):
                yield held[start : start + self._at_once]


def _chosen(among: Sequence[int], place: int) -> int:
    """The `place`th of the inputs, each shown once in a changing order before any is shown again."""
    turn, at = divmod(place, len(among))
    draws = torch.Generator().manual_seed(seed_of("together", 0, turn))
    return among[int(torch.randperm(len(among), generator=draws)[at])]
