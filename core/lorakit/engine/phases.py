"""What happens before the first update: text and pictures cached, the model loaded, quantized and checked."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from lorakit.control import Control
from lorakit.dataset import Dataset, Sample
from lorakit.engine import memory, pixels
from lorakit.engine.adapter import Adapter, attach
from lorakit.engine.cache import Cache
from lorakit.engine.loop import recompute
from lorakit.engine.parts import Denoiser, ImageCoder, Source, Text
from lorakit.engine.quantizers import Quantizer, held, quantize
from lorakit.errors import DataError, ModelError
from lorakit.events import Event, Phase, PhaseFinished, PhaseProgress, PhaseStarted
from lorakit.family import Family
from lorakit.plan import Plan
from lorakit.registry import Shelves

Result = TypeVar("Result")
Work = Generator[Event, None, Result]
TEXTS_AT_ONCE = 16
PICTURES_AHEAD = 4


class StopAsked(Exception):  # noqa: N818  (no error: what was asked for)
    """Somebody asked the run to stop; what was done is kept."""


@dataclass(frozen=True, slots=True)
class Context:
    """What every phase works with."""

    plan: Plan
    family: Family
    shelves: Shelves
    source: Source
    cache: Cache
    device: torch.device
    control: Control

    def check(self) -> None:
        """Raise StopAsked where somebody asked to stop."""
        if self.control.stopping:
            raise StopAsked


def phase(name: Phase, total: int, work: Iterator[str], note: Callable[[], str] = str) -> Iterator[Event]:
    """A phase's events: its start, one progress for each item that `work` yields, its end."""
    began = time.perf_counter()
    yield PhaseStarted(phase=name, total=total)
    for done, item in enumerate(work, 1):
        yield PhaseProgress(phase=name, done=done, note=item)
    yield PhaseFinished(phase=name, seconds=time.perf_counter() - began, note=note())


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


# -- the model ---------------------------------------------------------------------------------------------------


def load_model(context: Context) -> Work[tuple[Denoiser, Adapter]]:
    """The denoiser on its device, quantized as planned, with its adapter, and every promise checked."""
    settings = context.plan.settings
    denoisers: list[Denoiser] = []

    def load() -> Iterator[str]:
        denoisers.append(context.family.denoiser(context.plan, context.source))
        yield denoisers[0].component

    yield from phase("load", 1, load())
    denoiser = denoisers[0]
    context.check()
    quantizer: Quantizer = context.shelves.quantizers[settings.quantization.name].resolve()()
    converted: list[int] = []

    def convert() -> Iterator[str]:
        for number, block in enumerate(denoiser.blocks, 1):
            converted.append(quantize(block, quantizer, context.device))
            yield f"block {number}"

    if settings.quantization.name != "none":
        yield from phase("quantize", len(denoiser.blocks), convert(), lambda: f"{sum(converted)} layers")
    denoiser.module.to(context.device)
    adapter = attach(denoiser, settings.lora, settings.seed, context.device)
    if settings.train.gradient_checkpointing:
        recompute(denoiser.blocks, keeps_random_state=settings.lora.dropout > 0)
    check_facts(context.plan, denoiser, adapter, quantizer)
    return denoiser, adapter


def check_facts(plan: Plan, denoiser: Denoiser, adapter: Adapter, quantizer: Quantizer) -> None:
    """The plan's promises, as facts of what was loaded; ModelError where one does not hold."""
    own = {id(half) for layer in adapter.layers.values() for half in (layer.lora_A, layer.lora_B)}
    strays = [name for name, one in denoiser.module.named_parameters() if one.requires_grad and id(one) not in own]
    if strays:
        raise ModelError(f"{strays[0]} would be trained, and only the adapter may be", why="a plugin unfroze it")
    if not own:
        raise ModelError("the adapter stands on no layer", where="lora.targets")
    name = plan.settings.quantization.name
    if name == "none":
        return
    quantized, plain = held(denoiser.blocks, quantizer)
    if plain or not quantized:
        raise ModelError(
            f"the plan says {name}, and {plain} of {plain + quantized} layers of the blocks are not",
            fix="This is a bug of the quantizer; choose another with --set quantization.name=NAME.",
        )
