"""Promises about the three parts: shapes, scale, text, predictions, modulation, and pictures equal to diffusers'."""

from __future__ import annotations

import inspect
import warnings
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lorakit.dataset import Dataset
from lorakit.engine import pixels
from lorakit.engine.caching import Scene, cache_text
from lorakit.engine.parts import Text, Words
from lorakit.engine.preview import Painter, Subject
from lorakit.testing.bench import CPU, LONG, SHORT, Bench, drained, farthest
from lorakit.testing.promise import require

CLOSE = 1e-4
"""Greatest difference, to the size of what is compared, that adding in another order explains in fp32."""
SCALE = (0.3, 3.0)
"""Standard deviation of latents of pictures, which is about 1 for the published models."""
LEVELS = 2
"""Greatest difference of two pictures, of 255 levels: the last digit rounds otherwise."""


def _near(one: Tensor, other: Tensor) -> bool:
    return farthest(one, other) <= CLOSE * max(1.0, float(other.abs().max()))


# -- pictures ----------------------------------------------------------------------------------------------------


@torch.no_grad()
def shapes(bench: Bench) -> str:
    """Latents are (B, C, H / scale, W / scale) of about unit variance, and come back as pictures."""
    coder, family = bench.coder, bench.family
    token = coder.scale * family.patch
    require(family.side_multiple % token == 0, f"side_multiple is no multiple of {token}, the side of a token.")
    found = []
    for paths in (("0.png", "1.png"), ("2.png", "3.png")):
        seen = torch.stack([_pixels(bench, name) for name in paths])
        latents = coder.encode(seen)
        height, width = (side // coder.scale for side in seen.shape[-2:])
        expected = (2, coder.channels, height, width)
        require(tuple(latents.shape) == expected, f"latents are {tuple(latents.shape)}, and should be {expected}.")
        require(torch.equal(coder.encode(seen), latents), "a picture is encoded otherwise the second time.")
        require(_near(coder.encode(seen[1:]), latents[1:]), "the pictures beside a picture change its latents.")
        back = coder.decode(latents)
        require(back.shape == seen.shape, f"decoded pictures are {tuple(back.shape)}, and were {tuple(seen.shape)}.")
        require(torch.isfinite(back).all(), "decoded pictures have numbers that are not finite.")
        found.append(latents.flatten())
    size = float(torch.cat(found).std())
    require(SCALE[0] < size < SCALE[1], f"the latents' standard deviation is {size:.3g}, and should be about 1.")
    noisy = bench.noisy(2)
    answer = bench.denoiser.predict(noisy, bench.levels(0.3, 0.8), bench.batch(bench.texts(SHORT, LONG)))
    require(answer.shape == noisy.shape, f"predict gives {tuple(answer.shape)} for {tuple(noisy.shape)}.")
    return f"{coder.channels} channels, scale {coder.scale}, standard deviation {size:.2f}"


def _pixels(bench: Bench, name: str) -> Tensor:
    with Image.open(bench.pictures / name) as picture:
        return pixels.to_tensor(picture.convert("RGB"))


# -- text --------------------------------------------------------------------------------------------------------


@torch.no_grad()
def text(bench: Bench) -> str:
    """Text does not depend on its neighbours, and comes out of the cache as it went in, whoever reads it."""
    captions = (SHORT, LONG, "")
    alone = bench.texts(*captions)
    for one, other in zip(alone, bench.encoder.encode(captions), strict=True):
        require(one.hidden.shape[:2] == (1, one.lengths[0]), "a Text's length is not that of its hidden states.")
        require(one.lengths == other.lengths, "a caption has another length beside other captions.")
        require(_near(other.hidden, one.hidden), "a caption is encoded otherwise beside other captions.")
        if one.pooled is not None:
            assert other.pooled is not None
            require(_near(other.pooled, one.pooled), "a caption's pooled text is otherwise beside other captions.")
    require(not _same(alone[0], alone[1]), "two captions are encoded alike.")
    context = bench.context(bench.plan())
    store = drained(cache_text(context, Dataset(), [Scene(caption) for caption in captions]))
    restored = []
    for caption, one in zip(captions, alone, strict=True):
        require(_near(store[Words(caption)].hidden, one.hidden), "the cache holds other text than encode gives.")
        key = context.cache.key(tried=caption)
        context.cache.store(key, one.tensors())
        restored.append(Text.from_tensors(context.cache.load(key)))
        require(_same(one, restored[-1]), "text comes out of the cache otherwise than it went in.")
    noisy, t = bench.noisy(3), bench.levels(0.3, 0.6, 0.8)
    answers = [bench.denoiser.predict(noisy, t, bench.batch(some)) for some in (alone, restored)]
    require(torch.equal(*answers), "predict answers otherwise to text from the cache.")
    return f"{', '.join(str(one.lengths[0]) for one in alone)} tokens"


def _same(one: Text, other: Text) -> bool:
    if one.lengths != other.lengths or not torch.equal(one.hidden, other.hidden):
        return False
    return one.pooled is other.pooled or (
        one.pooled is not None and other.pooled is not None and torch.equal(one.pooled, other.pooled)
    )


# -- predictions -------------------------------------------------------------------------------------------------


@torch.no_grad()
def predictions(bench: Bench) -> str:
    """A prediction is the same every time and in every batch, and depends on all that it is told."""
    noisy, t, texts = bench.noisy(2), bench.levels(0.3, 0.8), bench.texts(SHORT, LONG)

    def predict(noisy: Tensor, t: Tensor, *texts: Text) -> Tensor:
        return bench.denoiser.predict(noisy, t, bench.batch(texts))

    both = predict(noisy, t, *texts)
    require(torch.equal(predict(noisy, t, *texts), both), "the second of two equal calls answers otherwise.")
    worst = 0.0
    for number in (0, 1):
        alone = predict(noisy[number : number + 1], t[number : number + 1], texts[number])
        worst = max(worst, farthest(both[number : number + 1], alone) / max(1.0, float(alone.abs().max())))
    require(worst <= CLOSE, f"a picture is predicted otherwise beside another, by {worst:.2g}.")
    require(not torch.equal(predict(noisy, t, *reversed(texts)), both), "predict does not read the text.")
    require(not torch.equal(predict(noisy, t.flip(0), *texts), both), "predict does not read the noise level.")
    require(not torch.equal(predict(noisy.flip(0), t, *texts), both), "predict does not look at the latents.")
    return f"alone and together {worst:.1g} apart"


@torch.no_grad()
def modulation(bench: Bench) -> str:
    """`condition` gives what each modulation layer really gets, so that its answers can be worked out ahead."""
    denoiser, endings = bench.denoiser, bench.family.modulation
    heard: dict[str, list[Tensor]] = {ending: [] for ending in endings}

    def listen(ending: str) -> Any:
        return lambda module, given: heard[ending].append(given[0])

    hooks = [
        module.register_forward_pre_hook(listen(ending))
        for block in denoiser.blocks
        for name, module in block.named_modules()
        for ending in endings
        if name == ending or name.endswith(f".{ending}")
    ]
    noisy, t, about = bench.noisy(2), bench.levels(0.3, 0.8), bench.batch(bench.texts(SHORT, LONG))
    denoiser.predict(noisy, t, about)
    for one in hooks:
        one.remove()
    told = denoiser.condition(t, about) if endings else {}
    require(set(told) == set(endings), f"condition answers for {sorted(told)}, and modulation names {sorted(endings)}.")
    for ending, seen in heard.items():
        require(seen, f"no layer of the blocks is called {ending}.")
        require(all(_near(one, told[ending]) for one in seen), f"{ending} gets something else than condition says.")
    return f"{len(hooks)} layers" if endings else "none"


# -- the reference -----------------------------------------------------------------------------------------------


def previews(bench: Bench) -> str:
    """A preview is the picture that the reference pipeline draws from the same noise."""
    if bench.about.references:
        return "not tried: the pipeline of this variant begins with reference pictures"
    size = {"width": bench.wide.width, "height": bench.wide.height}
    guided = bench.about.guidance == "true"
    asked = {"steps": 3, **size, **({"negative": "a blurred cross"} if guided else {})}
    sampling = bench.plan(sampling=asked).settings.sampling
    said, negative = bench.texts(LONG, sampling.negative)
    painter = Painter(
        bench.family,
        bench.about,
        sampling,
        bench.denoiser,
        bench.coder,
        bench.scheduler,
        [Subject(said, negative)],
    )
    drawn = painter.draw(0, CPU, torch.float32)
    takes = inspect.signature(bench.pipeline.__call__).parameters
    call: dict[str, Any] = {**size, "num_inference_steps": sampling.steps, **bench.about.call}
    if guided:
        call["true_cfg_scale" if "true_cfg_scale" in takes else "guidance_scale"] = sampling.guidance
        call["negative_prompt"] = sampling.negative
    elif bench.about.guidance == "embedded":
        call["guidance_scale"] = sampling.guidance
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # those of diffusers' own samplers
        expected = bench.pipeline(prompt=LONG, generator=torch.Generator().manual_seed(sampling.seed), **call).images[0]
    require(drawn.size == expected.size, f"a preview is {drawn.size}, and the pipeline's picture {expected.size}.")
    one, other = (np.asarray(picture).astype(int) for picture in (drawn, expected))
    apart = int(np.abs(one - other).max())
    require(apart <= LEVELS, f"the preview differs from the pipeline's picture by {apart} of 255 levels.")
    require(one.std() > 1, "the picture is of one colour, which shows nothing.")
    return f"{apart} of 255 levels apart from {bench.about.pipeline}"
