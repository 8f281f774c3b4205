"""Pictures drawn with the adapter as it is, through the same `predict` that training uses."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from lorakit.engine.cache import write_atomically
from lorakit.engine.modulation import Foresight, ModulationTable
from lorakit.engine.parts import Batch, Conditions, Denoiser, ImageCoder, Said, Text
from lorakit.engine.pixels import to_image
from lorakit.engine.schedulers import Scheduler
from lorakit.family import Family, Variant
from lorakit.planned import PlannedSampling


def noise_for(settings: PlannedSampling, coder: ImageCoder, number: int = 0) -> Tensor:
    """The starting latents of prompt `number`, (1, C, H, W) on the CPU: the same for every checkpoint."""
    draws = torch.Generator().manual_seed(settings.seed + number)
    shape = (1, coder.channels, settings.height // coder.scale, settings.width // coder.scale)
    return torch.randn(shape, generator=draws)


@torch.no_grad()
def denoise(
    denoiser: Denoiser,
    scheduler: Scheduler,
    noise: Tensor,
    about: Batch,
    negative: Batch | None,
    settings: PlannedSampling,
    tokens: int,
    table: ModulationTable | None = None,
) -> Tensor:
    """From noise (B, C, H, W) to clean latents; with true guidance where there is a negative and it is over 1."""
    sampler = scheduler.sampler(settings.steps, tokens, settings.shift)
    levels = [now.expand(noise.shape[0]) for now in sampler.times.to(noise.device)]
    told = (about, negative) if negative is not None and settings.guidance > 1 else (about,)
    foresight = _foreseen(denoiser, levels, told, table)
    latents = sampler.start(noise)
    for number, t in enumerate(levels):
        seen = sampler.seen(latents, number)
        with foresight.at((number, 0)):
            prediction = denoiser.predict(seen, t, about)
        if len(told) > 1:
            with foresight.at((number, 1)):
                other = denoiser.predict(seen, t, told[1])
            prediction = denoiser.guide(prediction, other, settings.guidance)
        latents = sampler.step(latents, prediction, number)
    return latents


def _foreseen(
    denoiser: Denoiser, levels: Sequence[Tensor], told: Sequence[Batch], table: ModulationTable | None
) -> Foresight[tuple[int, int]]:
    """What the modulation layers answer at every step, to each of the batches."""
    if table is None:
        return Foresight((), {})
    return table.foresee(
        {(number, side): denoiser.condition(t, one) for number, t in enumerate(levels) for side, one in enumerate(told)}
    )


@dataclass(frozen=True, slots=True)
class Subject:
    """What is drawn: the text of its prompt, that of the negative prompt, and the latents of references (C, h, w)."""

    text: Said
    negative: Said
    references: tuple[Tensor, ...] = ()


class Painter:
    """Draws the plan's prompts, one after another, at any strength of the adapter."""

    def __init__(
        self,
        family: Family,
        variant: Variant,
        settings: PlannedSampling,
        denoiser: Denoiser,
        coder: ImageCoder,
        scheduler: Scheduler,
        subjects: Sequence[Subject],
        conditions: Conditions = Text.collate,
        table: ModulationTable | None = None,
    ) -> None:
        self._family, self._variant, self._settings = family, variant, settings
        self._denoiser, self._coder, self._scheduler = denoiser, coder, scheduler
        self._subjects, self._conditions, self._table = subjects, conditions, table

    def draw(self, number: int, device: torch.device, dtype: torch.dtype) -> Image.Image:
        """The picture of prompt `number`; training's random state and mode are left as they were."""
        training = self._denoiser.module.training
        self._denoiser.module.eval()
        try:
            noise = noise_for(self._settings, self._coder, number).to(device, dtype)
            tokens = noise.shape[-1] * noise.shape[-2] // self._family.patch**2
            with torch.no_grad():
                about, negative = self._batches(self._subjects[number], device, dtype)
                latents = denoise(
                    self._denoiser, self._scheduler, noise, about, negative, self._settings, tokens, self._table
                )
                self._coder.module.to(device)
                return to_image(self._coder.decode(latents.float())[0])
        finally:
            if device.type != "cpu":
                self._coder.module.to("cpu")
            self._denoiser.module.train(training)

    def _batches(self, subject: Subject, device: torch.device, dtype: torch.dtype) -> tuple[Batch, Batch | None]:
        """What the model is told of a subject, and of its negative where guidance is true."""
        guidance, height, width = self._variant.guidance, self._settings.height, self._settings.width
        references = tuple(one[None].to(device, dtype) for one in subject.references)
        sizes = torch.tensor([[height, width, 0, 0, height, width]], device=device)
        told = self._settings.guidance if guidance == "embedded" else None

        def batch(said: Said) -> Batch:
            return Batch(self._conditions([said]).to(device, dtype), references, sizes, told)

        return batch(subject.text), batch(subject.negative) if guidance == "true" else None


def contact_sheet(
    rows: Sequence[Sequence[Image.Image]], captions: Sequence[str], columns: Sequence[str]
) -> Image.Image:
    """Pictures in a grid with a title over each column and the caption under each row.

    Small pictures are enlarged without smoothing, so that their pixels can be seen.
    """
    width, height = rows[0][0].size
    factor = max(1, 192 // width)
    width, height, gap = width * factor, height * factor, 8
    size = max(13, width // 24)
    font, line = ImageFont.load_default(size), round(size * 1.6)
    total = (gap + len(columns) * (width + gap), line + gap + len(rows) * (height + line + gap))
    sheet = Image.new("RGB", total, "white")
    pen = ImageDraw.Draw(sheet)
    for column, title in enumerate(columns):
        pen.text((gap + column * (width + gap), gap // 2), title, "black", font)
    for number, row in enumerate(rows):
        top = line + gap + number * (height + line + gap)
        for column, picture in enumerate(row):
            enlarged = picture.resize((width, height), Image.Resampling.NEAREST)
            sheet.paste(enlarged, (gap + column * (width + gap), top))
        pen.text((gap, top + height + 1), shortened(captions[number], pen, font, total[0] - 2 * gap), "black", font)
    return sheet


def shortened(
    text: str, pen: ImageDraw.ImageDraw, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int
) -> str:
    """The text, cut to what fits."""
    if pen.textlength(text, font) <= width:
        return text
    while text and pen.textlength(f"{text}…", font) > width:
        text = text[:-1]
    return f"{text}…"


def save(picture: Image.Image, path: Path) -> None:
    """Write a PNG, whole or not at all."""
    write_atomically(path, encoded(picture))


def decoded(png: bytes) -> Image.Image:
    """The picture that a PNG holds."""
    with Image.open(io.BytesIO(png)) as opened:
        opened.load()
        return opened


def encoded(picture: Image.Image) -> bytes:
    """The picture as a PNG."""
    made = io.BytesIO()
    picture.save(made, "PNG")
    return made.getvalue()
