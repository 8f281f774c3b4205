"""What the denoiser is shown while its correction is made: the user's own captions and pictures, or neutral ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from lorakit.dataset import Dataset
from lorakit.engine import memory
from lorakit.engine.caching import Scene, cache_text
from lorakit.engine.draws import draw
from lorakit.engine.material import gather
from lorakit.engine.parts import Batch, Conditions, Text, Words
from lorakit.engine.phases import Context, Work
from lorakit.engine.preparing import Item
from lorakit.engine.schedulers import Scheduler

NEUTRAL = (
    "a photograph of a wooden table with a bowl of fruit beside a window",
    "a portrait of an old man with a grey beard, soft light",
    "a red car parked on a narrow street in the rain",
    "a mountain lake at sunrise, mist over the water",
    "a black cat asleep on a blue sofa",
    "a poster with large yellow letters on a dark ground",
    "an oil painting of sailing boats in a harbour",
    "a young woman in a green coat, city lights behind her",
    "a white circle on the left of a plain background",
    "a bowl of noodle soup seen from above",
    "a pencil drawing of a small house with a garden",
    "two children playing football on a beach",
    "a modern kitchen with white cupboards",
    "a close-up of a purple flower with drops of water",
    "a robot made of copper standing in a forest",
    "a flat illustration of a green tree and an orange sun",
)
COARSE, DISCS = 8, 3  # the noise that a neutral picture is made of is on a grid of this side


@dataclass(frozen=True, slots=True)
class Shown:
    """Inputs of the denoiser: noisy latents (B, C, H, W), their noise levels (B,), and what else it is told."""

    noisy: Tensor
    t: Tensor
    about: Batch

    @property
    def shapes(self) -> tuple[torch.Size, ...]:
        """Inputs of the same shapes can be shown at once."""
        return (self.noisy.shape[1:], *(one.shape[1:] for one in self.about.references))

    def to(self, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor, Batch]:
        """What `predict` takes."""
        return self.noisy.to(device), self.t.to(device), self.about.to(device, dtype)

    @staticmethod
    def collate(items: Sequence[Shown]) -> Shown:
        """Several of the same shapes as one."""
        told = [item.about for item in items]
        references = zip(*(one.references for one in told), strict=True)
        about = replace(
            told[0],
            text=Text.collate([one.text for one in told]),
            references=tuple(torch.cat(one) for one in references),
            sizes=torch.cat([one.sizes for one in told if one.sizes is not None]),
        )
        return Shown(torch.cat([item.noisy for item in items]), torch.cat([item.t for item in items]), about)


def inputs(context: Context, scheduler: Scheduler, count: int) -> Work[list[Shown]]:
    """`count` inputs at noise levels of training and of previews in turn; on the CPU, in the model's number format."""
    found = yield from (_own(context, count) if context.plan.settings.data else _neutral(context, count))
    items, conditions = found
    patch, settings, dtype = context.family.patch, context.plan.settings, context.source.dtype
    shown = []
    for number, item in enumerate(items):
        latents = item.latents
        tokens = latents.shape[-1] * latents.shape[-2] // patch**2
        chance = draw(settings.seed, number, tuple(latents.shape))
        even = torch.tensor([(number + 0.5) / count])  # spread evenly, which few random numbers are not
        walk = scheduler.sampler(count, tokens).times[number : number + 1]
        t = walk if number % 2 else scheduler.level(even, tokens)
        noisy = scheduler.mix(latents[None].float(), chance.noise[None], t)
        with torch.no_grad():
            text = conditions([item.text])
        references = tuple(one[None] for one in item.references)
        about = Batch(text, references, torch.tensor([item.sizes]), settings.train.guidance)
        shown.append(Shown(noisy.to(dtype), t, about.to(torch.device("cpu"), dtype)))
    return shown


def _own(context: Context, count: int) -> Work[tuple[list[Item], Conditions]]:
    """The user's pictures with their captions and references, from the first to the last and over again."""
    material = yield from gather(context)
    return [material.item(number % len(material.dataset.samples)) for number in range(count)], material.conditions


def _neutral(context: Context, count: int) -> Work[tuple[list[Item], Conditions]]:
    """Neutral captions, with simple pictures: noise alone is not what latents look like, and teaches less."""
    sampling, seed = context.plan.settings.sampling, context.plan.settings.seed
    texts = yield from cache_text(context, Dataset(), [Scene(caption) for caption in NEUTRAL])
    coder = context.family.image_coder(context.plan, context.source)
    coder.module.requires_grad_(False).eval().to(context.device)
    clean = []
    for number in range(count):
        context.check()
        picture = _picture(draw(seed, -1 - number, (3, COARSE, COARSE)).noise, sampling.height, sampling.width)
        with torch.no_grad():
            clean.append(coder.encode(picture[None].to(context.device))[0].cpu())
    del coder
    memory.release()
    said = [texts[Words(NEUTRAL[number % len(NEUTRAL)])] for number in range(count)]
    sizes = (sampling.height, sampling.width, 0, 0, sampling.height, sampling.width)
    return [Item(one, text, sizes=sizes) for one, text in zip(clean, said, strict=True)], Text.collate


def _picture(noise: Tensor, height: int, width: int) -> Tensor:
    """A picture (3, height, width) in [-1, 1] of soft colours with flat discs before them, from noise (3, n, n)."""
    soft = functional.interpolate(noise[None, :, ::2, ::2], (height, width), mode="bicubic", align_corners=False)[0]
    picture = (soft / 2).clamp(-1, 1)
    down, across = torch.linspace(0, 1, height)[:, None], torch.linspace(0, 1, width)[None]
    for disc in range(DISCS):
        y, x, size = torch.special.ndtr(noise[:, disc, 1])  # uniform in (0, 1)
        inside = (down - y) ** 2 + (across - x) ** 2 < (0.05 + 0.25 * size) ** 2
        picture = torch.where(inside, noise[:, disc, 3].clamp(-1, 1)[:, None, None], picture)
    return picture
