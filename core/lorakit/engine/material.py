"""What training is made of: the samples with their encoded text and pictures, found or encoded."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor

from lorakit.dataset import Dataset, Framed, Reference, Sample, index, previewed
from lorakit.engine.caching import LatentStore, Scene, TextStore, cache_images, cache_text, live, load_encoder
from lorakit.engine.parts import Conditions, ImageCoder, Said, Text, TextEncoder, Words
from lorakit.engine.phases import Context, Work, phase
from lorakit.engine.preparing import Item
from lorakit.engine.preview import Subject
from lorakit.engine.validation import Materials, Tried
from lorakit.errors import RunError
from lorakit.events import PhaseFinished, PhaseStarted
from lorakit.order import arithmetic
from lorakit.plan import Plan
from lorakit.validation import Exam, exam, split
from lorakit.words import count

TEXTS_KEPT = 256  # texts held in memory between the passes that need them
LATENTS_KEPT = 4_000_000  # bytes of latents held so: those of four pictures at 1024 x 1024, or all of a small run


@dataclass
class Material:
    """Everything that training and previews are given, encoded; `coder` is None where nothing is drawn.

    Texts come from the cache, or from an `encoder` that is kept and encodes them whenever they are needed.
    """

    context: Context
    dataset: Dataset
    scenes: Sequence[Scene]
    texts: TextStore | None
    latents: LatentStore
    coder: ImageCoder | None
    encoder: TextEncoder | None = None
    _kept: dict[Words, Text] = field(default_factory=dict)
    _latents: dict[Framed, Tensor] = field(default_factory=dict)
    _held: int = 0

    @property
    def conditions(self) -> Conditions:
        """How what was said of samples and scenes becomes the conditioning of a batch."""
        return live(self.encoder) if self.encoder else Text.collate

    def item(self, number: int) -> Item:
        """Sample `number` as it is taught."""
        return self._item(self.dataset.samples[number])

    def exam(self) -> Materials:
        """What validation looks at."""
        asked = exam(self.dataset, self.context.plan.settings)
        if not asked.compared:
            return Materials((), (), ())
        others = [
            replace(self._item(asked.canvas), text=self._text(prompt, asked.canvas.references))
            for prompt in asked.prompts
        ]
        return Materials(self._tried(asked, asked.held_out), self._tried(asked, asked.compared), others)

    def _tried(self, asked: Exam, samples: Sequence[Sample]) -> list[Tried]:
        bare = [(sample, asked.bare(sample) if sample in asked.asked else None) for sample in samples]
        return [
            Tried(self._item(sample), None if caption is None else self._text(caption, sample.references))
            for sample, caption in bare
        ]

    def _item(self, sample: Sample) -> Item:
        dropout = self.context.plan.settings.train.caption_dropout
        return Item(
            self._encoded(sample.framed),
            self._text(sample.caption, sample.references),
            self._text("", sample.references) if dropout else None,
            tuple(self._encoded(one.framed) for one in sample.references),
            sample.framed.sizes,
        )

    def _encoded(self, picture: Framed) -> Tensor:
        """A picture's latents: from the disk, or from memory while all that were asked for are few."""
        found = self._latents.get(picture)
        if found is None:
            found = self.latents[picture]
            if self._held + found.nbytes <= LATENTS_KEPT:
                self._latents[picture] = found
                self._held += found.nbytes
        return found

    def subjects(self) -> list[Subject]:
        """What previews draw."""
        negative = self.context.plan.settings.sampling.negative
        return [
            Subject(
                self._text(scene.prompt, scene.references),
                self._text(negative, scene.references),
                tuple(self.latents[one.framed] for one in scene.references),
            )
            for scene in self.scenes
        ]

    def _text(self, caption: str, references: tuple[Reference, ...]) -> Said:
        words = Words.about(caption, references)
        if self.texts is None:
            return words
        if words not in self._kept:
            if len(self._kept) >= TEXTS_KEPT:
                self._kept.clear()
            self._kept[words] = self.texts[words]
        return self._kept[words]


def gather(context: Context) -> Work[Material]:
    """The material of a run, in the phases index, cache text and cache images."""
    dataset = yield from _index(context)
    scenes = _scenes(context)
    texts, encoder = None, None
    if context.plan.settings.text_encoder.cache:
        texts = yield from cache_text(context, dataset, scenes)
    latents, coder = yield from cache_images(context, dataset, scenes)
    context.cache.files.save()
    context.cache.tidy()
    if texts is None:
        encoder = yield from _kept_encoder(context)
    return Material(context, dataset, scenes, texts, latents, coder, encoder)


def _kept_encoder(context: Context) -> Work[TextEncoder]:
    """The text encoder, which stays for the whole run."""
    found: list[TextEncoder] = []

    def load() -> Iterator[str]:
        found.append(load_encoder(context))
        yield "text encoder"

    yield from phase("load", 1, load(), lambda: "the text encoder, which encodes every pass")
    return found[0]


def _index(context: Context) -> Work[Dataset]:
    began = time.perf_counter()
    yield PhaseStarted(phase="index")
    settings, planned = context.plan.settings, context.plan.arithmetic
    whole = index(settings.data, context.family.planned_sizing(settings))
    dataset = split(whole, settings.validation.pictures if settings.validation.every else 0, settings.seed)
    found = arithmetic(dataset, settings.train, settings.seed)
    if found != planned or dataset.digest() != context.plan.dataset:
        raise RunError(
            f"the data are not those that the plan was made for: {found.images} pictures and {found.passes_per_epoch} "
            f"passes an epoch now, {planned.images} and {planned.passes_per_epoch} then, or other captions or sizes",
            fix="Put them back as they were, or start a new run.",
        )
    apart = f", {len(dataset.held_out)} held out" if dataset.held_out else ""
    note = f"{count(len(dataset.samples), 'picture')}, {count(len(dataset.buckets()), 'shape')}{apart}"
    yield PhaseFinished(phase="index", seconds=time.perf_counter() - began, note=note)
    return dataset


def draws(plan: Plan) -> bool:
    """Whether the run draws anything, and so encodes what is drawn."""
    sampling = plan.settings.sampling
    return bool(sampling.prompts and (sampling.every or sampling.strengths))


def _scenes(context: Context) -> list[Scene]:
    """What previews draw; nothing where none are drawn."""
    sampling, sizing = context.plan.settings.sampling, context.family.planned_sizing(context.plan.settings)
    if not draws(context.plan):
        return []
    drawn = zip(sampling.prompts, sampling.references, strict=True)
    return [Scene(prompt, previewed(paths, sizing)) for prompt, paths in drawn]
