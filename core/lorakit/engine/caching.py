"""Text and pictures encoded once: the cache filled before training, and read during it."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Generic

import torch
from torch import Tensor

from lorakit.dataset import Dataset, Framed, Reference
from lorakit.engine import memory, pixels
from lorakit.engine.cache import Cache
from lorakit.engine.parts import Conditions, ImageCoder, Text, TextEncoder, Words
from lorakit.engine.phases import Context, Work, phase
from lorakit.engine.ranks import Thing
from lorakit.errors import DataError
from lorakit.plan import Plan
from lorakit.validation import exam

TEXTS_AT_ONCE = 16
DECODERS = min(
    8, os.cpu_count() or 1
)  # threads: a photo of 24 megapixels takes half a second, a GPU encodes it in less
PICTURES_AHEAD = DECODERS + 2


@dataclass(frozen=True, slots=True)
class Scene:
    """A picture that previews draw: its prompt and the references it starts from."""

    prompt: str
    references: tuple[Reference, ...] = ()


@dataclass(frozen=True, slots=True)
class Dealt(Generic[Thing]):
    """What is wanted of the cache and missing, and which of it this process makes; it makes all where it is alone."""

    context: Context
    wanted: Sequence[Thing]
    missing: Sequence[Thing]
    own: Sequence[Thing]
    known: Callable[[Thing], bool]

    @staticmethod
    def of(context: Context, wanted: Sequence[Thing], known: Callable[[Thing], bool]) -> Dealt[Thing]:
        """Dealt by place among all that is wanted, for what is missing changes while others look."""
        own = context.ranks.dealt(range(len(wanted)))
        missing = [place for place, one in enumerate(wanted) if not known(one)]
        mine = [wanted[place] for place in missing if place in own]
        return Dealt(context, wanted, [wanted[place] for place in missing], mine, known)

    def done(self, make: Callable[[Sequence[Thing]], Iterator[str]]) -> Iterator[str]:
        """Make what is this process' own, and what others made that cannot be seen from here."""
        yield from make(self.own)
        self.context.ranks.meet()
        if len(self.own) < len(self.missing):
            yield from make([one for one in self.missing if one not in self.own and not self.known(one)])

    def note(self) -> str:
        """What came of it, in words."""
        count = self.context.ranks.count
        by = "" if count == 1 else f" by {count} processes"
        return f"{len(self.missing)} encoded{by}, {len(self.wanted) - len(self.missing)} reused"


# -- text --------------------------------------------------------------------------------------------------------


def words(plan: Plan, dataset: Dataset, scenes: Sequence[Scene]) -> list[Words]:
    """Every text that training, validation and previews need, once each."""
    found = [Words.about(sample.caption, sample.references) for sample in dataset.samples]
    if plan.settings.train.caption_dropout:
        found += [Words.about("", sample.references) for sample in dataset.samples]
    asked = exam(dataset, plan.settings)
    found += [Words.about(sample.caption, sample.references) for sample in asked.held_out]
    found += [Words.about(asked.bare(sample) or "", sample.references) for sample in asked.asked]
    found += [Words.about(prompt, asked.canvas.references) for prompt in asked.prompts]
    for scene in scenes:
        found.append(Words.about(scene.prompt, scene.references))
        found.append(Words.about(plan.settings.sampling.negative, scene.references))
    return list(dict.fromkeys(found))


class TextStore:
    """Text conditioning by its words, from the cache."""

    def __init__(self, context: Context) -> None:
        self._context = context
        variant = context.family.variants[context.plan.settings.variant]
        names = (*context.family.text_components, *variant.components)
        self._encoder = context.cache.files.of_folders(context.source.folder / name for name in names)

    def key(self, words: Words) -> str:
        """The words' name in the cache."""
        settings, files = self._context.plan.settings, self._context.cache.files
        seen = [[files.of(one.path), str(one.text_shape)] for one in words.references]
        return self._context.cache.key(
            kind="text",
            family=self._context.family.name,
            variant=settings.variant,
            version=[self._context.family.encoding_version, pixels.VERSION],
            encoder=self._encoder,
            template=settings.text_encoder.template,
            precision=settings.train.precision,
            caption=words.caption,
            references=seen,
        )

    def __getitem__(self, words: Words) -> Text:
        return Text.from_tensors(_cached(self._context.cache, self.key(words), f"the caption '{words.caption[:60]}'"))


def cache_text(context: Context, dataset: Dataset, scenes: Sequence[Scene]) -> Work[TextStore]:
    """Encode every text that is not in the cache; the encoder is loaded only if there is one, and freed."""
    store = TextStore(context)
    wanted = words(context.plan, dataset, scenes)
    work = Dealt.of(context, wanted, lambda one: store.key(one) in context.cache)
    yield from phase("cache text", len(work.own), work.done(lambda some: _encode_text(context, store, some)), work.note)
    return store


def _encode_text(context: Context, store: TextStore, missing: Sequence[Words]) -> Iterator[str]:
    if not missing:
        return
    encoder = load_encoder(context)
    plain = [one for one in missing if not one.references]
    groups = [plain[start : start + TEXTS_AT_ONCE] for start in range(0, len(plain), TEXTS_AT_ONCE)]
    for group in [*groups, *([one] for one in missing if one.references)]:
        context.check()
        with torch.no_grad():
            texts = _encoded(encoder, group)
        for one, text in zip(group, texts, strict=True):
            context.cache.store(store.key(one), text.tensors())
            yield one.caption
    del encoder
    memory.release()


def load_encoder(context: Context) -> TextEncoder:
    """The text encoder, frozen and on its device."""
    encoder = context.family.text_encoder(context.plan, context.source)
    on_cpu = context.plan.settings.text_encoder.device == "cpu"
    encoder.module.requires_grad_(False).eval().to("cpu" if on_cpu else context.device)
    return encoder


def _encoded(encoder: TextEncoder, group: Sequence[Words]) -> list[Text]:
    """The texts of a group that sees the same references."""
    seen = [pixels.resized(one.path, one.size, one.text_shape) for one in group[0].references if one.text_shape]
    return encoder.encode([one.caption for one in group], seen)


def live(encoder: TextEncoder) -> Conditions:
    """The conditioning of a batch of Words, encoded when it is asked for, with gradients where they are wanted."""

    def conditions(batch: Sequence[Words]) -> Text:
        if any(one.references for one in batch):
            return Text.collate([text for one in batch for text in _encoded(encoder, [one])])
        return Text.collate(_encoded(encoder, batch))

    return conditions


# -- pictures ----------------------------------------------------------------------------------------------------


class LatentStore:
    """Latents by framed picture, from the cache."""

    def __init__(self, context: Context) -> None:
        self._context = context
        folders = [context.source.folder / name for name in context.family.image_components]
        self._coder = context.cache.files.of_folders(folders)
        self._keys: dict[Framed, str] = {}

    def key(self, picture: Framed) -> str:
        """The picture's name in the cache."""
        if picture not in self._keys:
            brought = picture.fit
            self._keys[picture] = self._context.cache.key(
                kind="latents",
                family=self._context.family.name,
                version=[self._context.family.encoding_version, pixels.VERSION],
                coder=self._coder,
                picture=self._context.cache.files.of(picture.path),
                resized=str(brought.resized),
                crop=[brought.left, brought.top, str(brought.shape)],
            )
        return self._keys[picture]

    def __getitem__(self, picture: Framed) -> Tensor:
        return _cached(self._context.cache, self.key(picture), f"the picture {picture.path}")["latents"]


def frames(dataset: Dataset, scenes: Sequence[Scene]) -> list[Framed]:
    """Every picture that training, validation and previews need encoded, once each."""
    samples = (*dataset.samples, *dataset.held_out)
    targets = [sample.framed for sample in samples]
    seen = [*(sample.references for sample in samples), *(scene.references for scene in scenes)]
    references = [one.framed for some in seen for one in some]
    return list(dict.fromkeys((*targets, *references)))


def cache_images(
    context: Context, dataset: Dataset, scenes: Sequence[Scene]
) -> Work[tuple[LatentStore, ImageCoder | None]]:
    """Encode every picture that is not in the cache; the coder is kept for previews, if there are any."""
    store = LatentStore(context)
    wanted = frames(dataset, scenes)
    work = Dealt.of(context, wanted, lambda one: store.key(one) in context.cache)
    coder = context.family.image_coder(context.plan, context.source) if work.missing or scenes else None
    if coder is not None:
        coder.module.requires_grad_(False).eval()
    encode = partial(_encode_images, context, store, coder=coder)
    yield from phase("cache images", len(work.own), work.done(encode), work.note)
    if coder is not None and context.device.type != "cpu":
        coder.module.to("cpu")
        memory.release()
    return store, coder if scenes else None


def _encode_images(
    context: Context, store: LatentStore, missing: Sequence[Framed], *, coder: ImageCoder | None
) -> Iterator[str]:
    if coder is None or not missing:
        return
    coder.module.to(context.device)

    def encoded() -> Iterator[tuple[Framed, Tensor]]:
        for picture, seen in _decoded(missing):
            context.check()
            with torch.no_grad():
                latents = coder.encode(seen[None].to(context.device))[0]
            yield picture, latents

    def keep(picture: Framed, latents: Tensor) -> str:
        if not bool(torch.isfinite(latents).all()):
            raise DataError(f"the latents of {picture.path} are not finite numbers", fix="Replace or remove it.")
        context.cache.store(store.key(picture), {"latents": latents})
        return picture.path.name

    yield from _behind(keep, encoded())
    context.cache.files.save()


def _behind(work: Callable[[Framed, Tensor], str], items: Iterator[tuple[Framed, Tensor]]) -> Iterator[str]:
    """What `work` makes of each item in order, on another thread, one item behind the one that is being made.

    It waits for the device and for the disk, while the next picture is encoded.
    """
    with ThreadPoolExecutor(1) as pool:  # leaving it waits for the last
        behind: Future[str] | None = None
        for item in items:
            done, behind = behind, pool.submit(work, *item)
            if done is not None:
                yield done.result()
        if behind is not None:
            yield behind.result()


def _decoded(pictures: Sequence[Framed]) -> Iterator[tuple[Framed, Tensor]]:
    """Pixels of each picture in order, decoded ahead on another thread."""
    with ThreadPoolExecutor(DECODERS) as pool:
        ahead: deque[tuple[Framed, Future[Tensor]]] = deque()
        waiting = iter(pictures)
        try:
            while True:
                while len(ahead) < PICTURES_AHEAD and (picture := next(waiting, None)) is not None:
                    ahead.append((picture, pool.submit(pixels.load, picture)))
                if not ahead:
                    return
                ready, future = ahead.popleft()
                yield ready, future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _cached(cache: Cache, key: str, what: str) -> dict[str, Tensor]:
    try:
        return cache.load(key)
    except KeyError:
        cache.remove(key)
        raise DataError(
            f"the cached value of {what} cannot be read", fix="It was removed; start again, and it is made anew."
        ) from None
