"""Text and pictures encoded once: the cache filled before training, and read during it."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from lorakit.dataset import Dataset, Sample
from lorakit.engine import memory, pixels
from lorakit.engine.cache import Cache
from lorakit.engine.parts import ImageCoder, Text
from lorakit.engine.phases import Context, Work, phase
from lorakit.errors import DataError
from lorakit.plan import Plan

TEXTS_AT_ONCE = 16
PICTURES_AHEAD = 4

# -- text --------------------------------------------------------------------------------------------------------


def captions(plan: Plan, dataset: Dataset) -> list[str]:
    """Every text that training and previews need, once each."""
    found = [sample.caption for sample in dataset.samples]
    if plan.settings.train.caption_dropout:
        found.append("")
    found += [*plan.settings.sampling.prompts, plan.settings.sampling.negative]
    return list(dict.fromkeys(found))


class TextStore:
    """Text conditioning by caption, from the cache."""

    def __init__(self, context: Context) -> None:
        self._context = context
        variant = context.family.variants[context.plan.settings.variant]
        names = (*context.family.text_components, *variant.components)
        self._encoder = context.cache.files.of_folders(context.source.folder / name for name in names)

    def key(self, caption: str) -> str:
        """The caption's name in the cache."""
        settings = self._context.plan.settings
        return self._context.cache.key(
            kind="text",
            family=self._context.family.name,
            variant=settings.variant,
            version=self._context.family.encoding_version,
            encoder=self._encoder,
            template=settings.text_encoder.template,
            precision=settings.train.precision,
            caption=caption,
        )

    def __getitem__(self, caption: str) -> Text:
        return Text.from_tensors(_cached(self._context.cache, self.key(caption), f"the caption '{caption[:60]}'"))


def cache_text(context: Context, dataset: Dataset) -> Work[TextStore]:
    """Encode every caption that is not in the cache; the encoder is loaded only if there is one, and freed."""
    store = TextStore(context)
    wanted = captions(context.plan, dataset)
    missing = [caption for caption in wanted if store.key(caption) not in context.cache]
    yield from phase(
        "cache text",
        len(missing),
        _encode_text(context, store, missing),
        lambda: f"{len(missing)} encoded, {len(wanted) - len(missing)} reused",
    )
    return store


def _encode_text(context: Context, store: TextStore, missing: Sequence[str]) -> Iterator[str]:
    if not missing:
        return
    encoder = context.family.text_encoder(context.plan, context.source)
    encoder.module.requires_grad_(False).eval().to(context.device)
    for start in range(0, len(missing), TEXTS_AT_ONCE):
        context.check()
        some = missing[start : start + TEXTS_AT_ONCE]
        with torch.no_grad():
            texts = encoder.encode(some)
        for caption, text in zip(some, texts, strict=True):
            context.cache.store(store.key(caption), text.tensors())
            yield caption
    del encoder
    memory.release()


# -- pictures ----------------------------------------------------------------------------------------------------


class LatentStore:
    """Latents by sample, from the cache."""

    def __init__(self, context: Context, dataset: Dataset) -> None:
        self._context = context
        folders = [context.source.folder / name for name in context.family.image_components]
        self._coder = context.cache.files.of_folders(folders)
        self._keys: dict[Sample, str] = {}

    def key(self, sample: Sample) -> str:
        """The sample's name in the cache."""
        if sample not in self._keys:
            brought = sample.fit
            self._keys[sample] = self._context.cache.key(
                kind="latents",
                family=self._context.family.name,
                version=[self._context.family.encoding_version, pixels.VERSION],
                coder=self._coder,
                picture=self._context.cache.files.of(sample.path),
                resized=str(brought.resized),
                crop=[brought.left, brought.top, str(brought.shape)],
            )
        return self._keys[sample]

    def __getitem__(self, sample: Sample) -> Tensor:
        return _cached(self._context.cache, self.key(sample), f"the picture {sample.path}")["latents"]


def cache_images(context: Context, dataset: Dataset) -> Work[tuple[LatentStore, ImageCoder | None]]:
    """Encode every picture that is not in the cache; the coder is kept for previews, if there are any."""
    store = LatentStore(context, dataset)
    missing = [sample for sample in dataset.samples if store.key(sample) not in context.cache]
    sampling = context.plan.settings.sampling
    draws = bool(sampling.prompts) and bool(sampling.every or sampling.strengths)
    coder = context.family.image_coder(context.plan, context.source) if missing or draws else None
    if coder is not None:
        coder.module.requires_grad_(False).eval()
    yield from phase(
        "cache images",
        len(missing),
        _encode_images(context, store, missing, coder),
        lambda: f"{len(missing)} encoded, {len(dataset.samples) - len(missing)} reused",
    )
    if coder is not None and context.device.type != "cpu":
        coder.module.to("cpu")
        memory.release()
    return store, coder if draws else None


def _encode_images(
    context: Context, store: LatentStore, missing: Sequence[Sample], coder: ImageCoder | None
) -> Iterator[str]:
    if coder is None or not missing:
        return
    coder.module.to(context.device)
    for sample, picture in _decoded(missing):
        context.check()
        with torch.no_grad():
            latents = coder.encode(picture[None].to(context.device))[0]
        if not bool(torch.isfinite(latents).all()):
            raise DataError(f"the latents of {sample.path} are not finite numbers", fix="Replace or remove it.")
        context.cache.store(store.key(sample), {"latents": latents})
        yield sample.path.name
    context.cache.files.save()


def _decoded(samples: Sequence[Sample]) -> Iterator[tuple[Sample, Tensor]]:
    """Pixels of each sample in order, decoded ahead on another thread."""
    with ThreadPoolExecutor(2) as pool:
        ahead: deque[tuple[Sample, Future[Tensor]]] = deque()
        waiting = iter(samples)
        try:
            while True:
                while len(ahead) < PICTURES_AHEAD and (sample := next(waiting, None)) is not None:
                    ahead.append((sample, pool.submit(pixels.load, sample)))
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
