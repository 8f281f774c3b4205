"""Where promises are tried: the family's toy, four pictures, and everything made of them once."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lorakit import Kit, Plan, Registry, hookimpl
from lorakit.buckets import Shape
from lorakit.control import Control
from lorakit.engine.cache import Cache
from lorakit.engine.objective import make_scheduler
from lorakit.engine.parts import Batch, Denoiser, ImageCoder, Source, Text, TextEncoder
from lorakit.engine.phases import Context, Work
from lorakit.engine.schedulers import Scheduler
from lorakit.engine.source import DTYPES, cache_folder, locate
from lorakit.family import Family, Variant
from lorakit.testing.shapes import COLOURS, draw

SHORT, LONG = "a red circle", "a large blue star on the left, and below it a small green square"
CPU = torch.device("cpu")
GUIDED = 3.5
"""What a model with embedded guidance is told here."""


class _Alone:
    """A plugin that brings one family."""

    def __init__(self, family: Family) -> None:
        self._family = family

    @hookimpl
    def register(self, registry: Registry) -> None:
        registry.family(self._family)


class Bench:
    """One variant of a family on its toy, in fp32 on the CPU."""

    def __init__(self, family: Family, folder: Path, variant: str | None = None, kit: Kit | None = None) -> None:
        self.family, self.folder = family, folder
        self.variant: str = str(variant or getattr(family, "default_variant", ""))
        self._kit = kit

    @cached_property
    def kit(self) -> Kit:
        """The given Kit, or one of core's own plugin and this family: nothing else that is installed is heard."""
        return self._kit or Kit(discover=False, plugins={f"the tested {self.family.name}": _Alone(self.family)})

    @property
    def about(self) -> Variant:
        """The variant's facts."""
        return self.family.variants[self.variant]

    @cached_property
    def toy(self) -> Path:
        """The toy's model folder."""
        folder = self.folder / "toy"
        folder.mkdir(parents=True)
        self.family.toy(folder, self.variant)
        return folder

    @cached_property
    def source(self) -> Source:
        """The toy in fp32."""
        return Source(self.toy, f"the toy of {self.family.name}", torch.float32)

    # -- sizes ---------------------------------------------------------------------------------------------------

    @property
    def side(self) -> int:
        """The toy's side in pixels, as a multiple of what the family's sides are multiples of."""
        multiple = self.family.side_multiple
        return max(multiple, self.family.toy_resolution // multiple * multiple)

    @property
    def wide(self) -> Shape:
        """A shape that is no square: a wrong order of sides shows."""
        multiple = self.family.side_multiple
        return Shape(self.side, self.side - multiple) if self.side > multiple else Shape(2 * multiple, multiple)

    # -- plans and runs ------------------------------------------------------------------------------------------

    @cached_property
    def pictures(self) -> Path:
        """Four captioned pictures of the toys' little world, two of them no squares."""
        folder, side = self.folder / "pictures", self.side
        folder.mkdir(parents=True)
        shapes = (("circle", "red"), ("star", "blue"), ("square", "green"), ("cross", "yellow"))
        for number, (shape, colour) in enumerate(shapes):
            size = (side, side) if number < 2 else (self.wide.width, self.wide.height)
            draw(shape, COLOURS[colour], size=size, center=(0.4, 0.6)).save(folder / f"{number}.png")
            words = LONG if number == 1 else f"a {colour} {shape}"
            (folder / f"{number}.txt").write_text(words, encoding="utf-8")
        return folder

    def plan(self, **tables: Any) -> Plan:
        """A plan of a short run on the toy that draws nothing; tables are merged over it."""
        return self.kit.plan(self.request(**tables))

    def request(self, **tables: Any) -> dict[str, Any]:
        """What that plan is asked for with."""
        asked: dict[str, Any] = {
            "family": self.family.name,
            "variant": self.variant,
            "preset": "none",
            "name": "run",
            "trigger": "sks",
            "output": str(self.folder / "runs"),
            "model": {"source": str(self.toy), "device": "cpu"},
            "data": [{"folder": str(self.pictures)}],
            "lora": {"rank": 4},
            "optimizer": {"learning_rate": 2e-3},
            "train": {"updates": 3, "resolution": self.side, "precision": "fp32", "gradient_checkpointing": False},
            "quantization": {"name": "none"},
            "sampling": {"prompts": [LONG], "every": 0, "strengths": []},
            "validation": {"every": 0},
            "save": {"every": 0, "dtype": "fp32"},
        }
        for name, value in tables.items():
            asked[name] = {**asked.get(name, {}), **value} if isinstance(value, dict) else value
        return asked

    def context(self, plan: Plan) -> Context:
        """What the phases of a plan work with."""
        source = locate(plan, self.family)
        return Context(plan, self.family, self.kit.shelves, source, Cache(cache_folder(plan)), CPU, Control())

    @cached_property
    def scheduler(self) -> Scheduler:
        """The planned training objective."""
        return make_scheduler(self.context(self.plan()))

    # -- parts ---------------------------------------------------------------------------------------------------

    @cached_property
    def encoder(self) -> TextEncoder:
        """The text encoder, frozen."""
        encoder = self.family.text_encoder(self.plan(), self.source)
        encoder.module.requires_grad_(False).eval()
        return encoder

    @cached_property
    def coder(self) -> ImageCoder:
        """The image coder, frozen."""
        coder = self.family.image_coder(self.plan(), self.source)
        coder.module.requires_grad_(False).eval()
        return coder

    @cached_property
    def denoiser(self) -> Denoiser:
        """The denoiser as it was loaded, frozen; whoever changes one takes another."""
        denoiser = self.family.denoiser(self.plan(), self.source)
        denoiser.module.requires_grad_(False).eval()
        return denoiser

    @cached_property
    def pipeline(self) -> Any:
        """The reference: the toy folder in the variant's diffusers pipeline."""
        import diffusers

        kind = getattr(diffusers, self.about.pipeline, None)
        if kind is None:
            raise AttributeError(f"diffusers has no pipeline '{self.about.pipeline}'")
        made = kind.from_pretrained(self.toy, dtype=DTYPES["fp32"])
        made.set_progress_bar_config(disable=True)
        return made

    def texts(self, *captions: str) -> list[Text]:
        """The encoded captions, one by one."""
        with torch.no_grad():
            return [text for caption in captions for text in self.encoder.encode([caption])]

    def noisy(self, number: int) -> Tensor:
        """Latents of no picture in particular, (number, C, H, W), always the same."""
        shape = (number, self.coder.channels, self.wide.height // self.coder.scale, self.wide.width // self.coder.scale)
        return torch.randn(shape, generator=torch.Generator().manual_seed(3))

    def levels(self, *u: float) -> Tensor:
        """What the denoiser is told of noise levels, for u in (0, 1)."""
        noisy = self.noisy(1)
        tokens = noisy.shape[-1] * noisy.shape[-2] // self.family.patch**2
        return self.scheduler.level(torch.tensor(u), tokens)

    def batch(self, texts: Sequence[Text]) -> Batch:
        """What the denoiser is told of pictures with these texts, each cut from a larger one."""
        height, width = self.wide.height, self.wide.width
        sizes = torch.tensor([[height, width + 8, 0, 4, height, width]] * len(texts))
        return Batch(Text.collate(texts), (), sizes, GUIDED if self.about.guidance == "embedded" else None)


def drained(work: Work[Any]) -> Any:
    """The answer of a phase, its events dropped."""
    while True:
        try:
            next(work)
        except StopIteration as end:
            return end.value


def farthest(one: Tensor, other: Tensor) -> float:
    """The greatest difference of two tensors of one shape."""
    if one.shape != other.shape:
        raise ValueError(f"{tuple(one.shape)} and {tuple(other.shape)} are not one shape")
    return float((one.float() - other.float()).abs().max())
