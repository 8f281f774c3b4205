"""A model loaded once, with LoRA files to draw with at any strength and guidance."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from PIL import Image
from torch import nn

from lorakit.dataset import Dataset, Reference, previewed
from lorakit.engine.caching import LatentStore, Scene, TextStore, cache_images, cache_text, live, load_encoder
from lorakit.engine.loading import Base, load_base
from lorakit.engine.lora_pairs import Pairs
from lorakit.engine.objective import make_scheduler
from lorakit.engine.parts import ImageCoder, Said, Text, TextEncoder, Words
from lorakit.engine.phases import Context, Work, phase
from lorakit.engine.preview import Painter, Subject
from lorakit.engine.schedulers import Scheduler
from lorakit.engine.worn import Worn


@dataclass
class Studio:
    """Everything that a picture needs, loaded; text is encoded ahead, unless the LoRA changes the text encoder."""

    context: Context
    base: Base
    coder: ImageCoder
    scheduler: Scheduler
    subjects: list[Subject]
    encoder: TextEncoder | None
    worn: Worn

    def draw(self, number: int, strength: float, guidance: float) -> Image.Image:
        """The picture of prompt `number`, with what is worn."""
        settings = self.context.plan.settings
        painter = Painter(
            self.context.family,
            self.context.family.variants[settings.variant],
            settings.sampling.model_copy(update={"guidance": guidance}),
            self.base.denoiser,
            self.coder,
            self.scheduler,
            self.subjects,
            live(self.encoder) if self.encoder else Text.collate,
            self.base.table,
        )
        with self.worn.adapter.at(strength):
            return painter.draw(number, self.context.device, self.context.source.dtype)


@dataclass(frozen=True, slots=True)
class Encoded:
    """What pictures are drawn of, ahead of the model; `texts` are None where the LoRA changes the text encoder."""

    scheduler: Scheduler
    scenes: Sequence[Scene]
    texts: TextStore | None
    latents: LatentStore
    coder: ImageCoder


def encoded(context: Context) -> Work[Encoded]:
    """The plan's prompts and references, encoded by all processes together."""
    scheduler = make_scheduler(context)  # first, for a model of another objective is refused here
    sampling, sizing = context.plan.settings.sampling, context.family.planned_sizing(context.plan.settings)
    drawn = zip(sampling.prompts, sampling.references, strict=True)
    scenes = [Scene(prompt, previewed(paths, sizing)) for prompt, paths in drawn]
    texts = None
    if context.plan.settings.text_encoder.cache:
        texts = yield from cache_text(context, Dataset(), scenes)
    latents, coder = yield from cache_images(context, Dataset(), scenes)
    context.cache.files.save()
    assert coder is not None
    return Encoded(scheduler, scenes, texts, latents, coder)


def opened(context: Context, told: Encoded, pairs: Pairs) -> Work[Studio]:
    """The studio of a plan, with a file's pairs worn; every file that is worn later has the same layers."""
    context.check()
    encoder = None
    if told.texts is None:
        encoder = yield from _kept(context)
    base = yield from load_base(context)
    hosts = _hosts(context, base, encoder, pairs)
    worn = Worn(hosts, context.family, context.plan.settings.lora, pairs, context.device)
    negative = context.plan.settings.sampling.negative
    subjects = [
        Subject(
            _said(scene.prompt, scene.references, told.texts),
            _said(negative, scene.references, told.texts),
            tuple(told.latents[one.framed] for one in scene.references),
        )
        for scene in told.scenes
    ]
    return Studio(context, base, told.coder, told.scheduler, subjects, encoder, worn)


def _said(caption: str, references: tuple[Reference, ...], texts: TextStore | None) -> Said:
    words = Words.about(caption, references)
    return words if texts is None else texts[words]


def _kept(context: Context) -> Work[TextEncoder]:
    """The text encoder, which the LoRA changes, and which stays for that."""
    found: list[TextEncoder] = []

    def load() -> Iterator[str]:
        found.append(load_encoder(context))
        yield "text encoder"

    yield from phase("load", 1, load(), lambda: "the text encoder, which the LoRA changes")
    return found[0]


def _hosts(context: Context, base: Base, encoder: TextEncoder | None, pairs: Pairs) -> dict[str, nn.Module]:
    """The models that the file stands on, by component."""
    found = {base.denoiser.component: base.denoiser.module}
    if encoder is not None:
        found |= {name: encoder.module.get_submodule(name) for name in context.family.trainable_text}
    return {name: one for name, one in found.items() if any(layer.startswith(f"{name}.") for layer in pairs)}
