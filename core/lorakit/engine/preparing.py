"""Samples and draws made into batches on the device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Tensor

from lorakit.engine.draws import chance, draw
from lorakit.engine.parts import Batch, Conditions, Said, Text
from lorakit.engine.schedulers import Scheduler
from lorakit.engine.unread import onto
from lorakit.errors import DataError
from lorakit.order import Turn
from lorakit.planned import Planned
from lorakit.words import count


@dataclass(frozen=True, slots=True)
class Item:
    """What a sample is taught with: latents (C, H, W), text, the text of its empty caption, references (C, h, w).

    `sizes` are those of `Batch.sizes`.
    """

    latents: Tensor
    text: Said
    empty: Said | None = None
    references: tuple[Tensor, ...] = ()
    sizes: tuple[int, ...] = (0, 0, 0, 0, 0, 0)


Samples = Callable[[int], Item]
"""A sample by its index."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """A batch on its device: clean latents and noise (B, C, H, W), noise levels (B,), what else the model is told.

    `drawn` are the draws and the levels made of them, as numbers.
    """

    clean: Tensor
    noise: Tensor
    t: Tensor
    about: Batch
    drawn: tuple[tuple[float, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Given:
    """All that a pass is computed from: noisy latents (B, C, H, W), noise levels (B,), what else the model is told.

    `target` is what it should predict, `weight` (B,) how much each loss counts, and `share` (B,) what the gradient of
    each is multiplied with. `answers` are those of its modulation layers, where they were worked out ahead.
    """

    noisy: Tensor
    t: Tensor
    about: Batch
    target: Tensor
    weight: Tensor
    share: Tensor | None = None
    answers: tuple[Tensor, ...] = ()

    def __str__(self) -> str:
        number, *shape = self.noisy.shape
        length = self.about.text.hidden.shape[1]
        told = f"{count(number, 'picture')} of {shape[-1]} x {shape[-2]} latents, {length} tokens"
        masked = "" if min(self.about.text.lengths) == length else " at most"
        references = len(self.about.references)
        return f"{told} of text{masked}" + (f", {count(references, 'reference')}" if references else "")


class Batches:
    """Batches of a run, as its model is shown them; `patch` is the side of an image token in latent pixels."""

    def __init__(
        self,
        settings: Planned,
        scheduler: Scheduler,
        patch: int,
        device: torch.device,
        dtype: torch.dtype,
        conditions: Conditions,
    ) -> None:
        self._settings, self._scheduler, self._patch = settings, scheduler, patch
        self._device, self._dtype, self._conditions = device, dtype, conditions
        self._fetched: dict[int, Prepared] = {}

    def of(self, turn: Turn, samples: Samples) -> Prepared:
        """A batch at the draws of its passes."""
        fetched = self._fetched.pop(turn.first_pass, None)
        if fetched is not None:
            return fetched
        found = [samples(index) for index in turn.samples]
        draws = [
            draw(self._settings.seed, turn.first_pass + place, tuple(item.latents.shape))
            for place, item in enumerate(found)
        ]
        texts = self._texts(found, [one.drop for one in draws])
        noise = torch.stack([one.noise for one in draws])
        offset = torch.stack([one.offset for one in draws])
        return self.at(found, texts, noise, offset, torch.stack([one.level for one in draws]))

    def fetch(self, turn: Turn, samples: Samples) -> None:
        """Have a batch on its device before its turn comes, unless its texts are encoded anew at every pass.

        What is wrong with it is said when its turn comes.
        """
        self._fetched.clear()
        if self._conditions is Text.collate:
            with suppress(DataError):
                self._fetched[turn.first_pass] = self.of(turn, samples)

    def condition(self, turn: Turn, samples: Samples) -> tuple[Tensor, Batch]:
        """A batch's noise levels and what the model is told, without its noise."""
        found = [samples(index) for index in turn.samples]
        numbers = range(turn.first_pass, turn.first_pass + len(found))
        levels, drops = zip(*(chance(self._settings.seed, number)[:2] for number in numbers), strict=True)
        t = self._scheduler.level(torch.stack(levels), self.tokens(found[0].latents))
        return onto(t, self._device), self.told(found, self._texts(found, drops))

    def at(self, items: Sequence[Item], texts: Sequence[Said], noise: Tensor, offset: Tensor, u: Tensor) -> Prepared:
        """A batch at these draws: noise (B, C, H, W) and (B, C, 1, 1), and u (B,) in (0, 1) for the noise level."""
        clean = torch.stack([item.latents for item in items]).float()
        noise = self._scheduler.noise(noise, offset)
        t = self._scheduler.level(u, self.tokens(clean))
        drawn = tuple(zip(u.tolist(), t.tolist(), strict=True))
        clean, noise, t = (onto(tensor, self._device) for tensor in (clean, noise, t))
        return Prepared(clean, noise, t, self.told(items, texts), drawn)

    def form(self, turn: Turn, samples: Samples) -> object:
        """What code compiled for a batch depends on: how many pictures, their shape, and how long their texts are."""
        items = [samples(index) for index in turn.samples]
        texts = [item.text.lengths if isinstance(item.text, Text) else item.text for item in items]
        shapes = [tuple(one.shape) for one in (items[0].latents, *items[0].references)]
        return len(items), tuple(shapes), max(texts, key=str)

    def told(self, items: Sequence[Item], texts: Sequence[Said]) -> Batch:
        """What the model is told of items that have these texts."""
        text = self._conditions(texts).to(self._device, self._dtype)
        seen = zip(*(item.references for item in items), strict=True)
        references = tuple(onto(torch.stack(some), self._device).to(self._dtype) for some in seen)
        sizes = onto(torch.tensor([item.sizes for item in items]), self._device)
        return Batch(text, references, sizes, self._settings.train.guidance)

    def tokens(self, latents: Tensor) -> int:
        """Image tokens of a picture with latents (..., H, W)."""
        return latents.shape[-1] * latents.shape[-2] // self._patch**2

    def _texts(self, items: Sequence[Item], drops: Sequence[float]) -> list[Said]:
        """The items' texts, empty where chance drops them."""
        dropout = self._settings.train.caption_dropout
        return [
            item.empty if item.empty is not None and drop < dropout else item.text
            for drop, item in zip(drops, items, strict=True)
        ]
