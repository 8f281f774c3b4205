"""The promise about reference pictures, for variants that take any."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from lorakit.engine import pixels
from lorakit.engine.parts import Text
from lorakit.testing.bench import LONG, SHORT, Bench, farthest
from lorakit.testing.of_parts import CLOSE
from lorakit.testing.of_training import Lesson
from lorakit.testing.promise import require
from lorakit.testing.shapes import COLOURS, draw


def references(bench: Bench) -> str:
    """References reach the prediction, and the text encoder where the variant says so, and can be taught with."""
    about = bench.about
    if not about.references:
        return "this variant takes none"
    with torch.no_grad():
        _predicted(bench, about.references)
        seen = _read(bench) if about.text_reference_resolution else "not seen by the text encoder"
    taught = {"updates": 2, "reference_resolution": bench.side}
    plan = bench.plan(data=[{"folder": str(bench.pictures), "references": str(_befores(bench))}], train=taught)
    lesson = Lesson(bench, plan)
    lacking = [one for one in range(4) if len(lesson.material.item(one).references) != 1]
    require(not lacking, "a picture is taught without its reference.")
    lesson.teach()
    require(any(one.lora_B.any() for one in lesson.model.adapter.layers.values()), "nothing is learned beside them.")
    return f"up to {about.references}, {seen}"


# -- the prediction ----------------------------------------------------------------------------------------------


def _predicted(bench: Bench, most: int) -> None:
    """One reference and as many as the variant takes, of shapes of their own, alone and beside another picture's."""
    noisy, t, texts = bench.noisy(2), bench.levels(0.3, 0.8), bench.texts(SHORT, LONG)
    for number in dict.fromkeys((1, most)):
        shown = [_latents(bench, place) for place in range(number)]
        others = [one.flip(-1).neg() for one in shown]

        def predict(rows: slice, told: list[Tensor], texts: list[Text] = texts) -> Tensor:
            batch = replace(bench.batch(texts[rows]), references=tuple(one[rows] for one in told))
            return bench.denoiser.predict(noisy[rows], t[rows], batch)

        both = predict(slice(0, 2), shown)
        require(both.shape == noisy.shape, f"with {number} references, predict gives {tuple(both.shape)}.")
        require(torch.isfinite(both).all(), f"with {number} references, predictions are not finite.")
        require(torch.equal(predict(slice(0, 2), shown), both), "with references, equal calls answer otherwise.")
        for place, other in enumerate(others):
            changed = predict(slice(0, 2), [*shown[:place], other, *shown[place + 1 :]])
            require(not torch.equal(changed, both), f"predict does not look at reference {place + 1} of {number}.")
        for row in (0, 1):
            alone = predict(slice(row, row + 1), shown)
            near = farthest(both[row : row + 1], alone) <= CLOSE * max(1.0, float(alone.abs().max()))
            require(near, "with references, a picture is predicted otherwise beside another.")


def _latents(bench: Bench, place: int) -> Tensor:
    """Latents of a reference for two pictures, (2, C, h, w): squares first, then of another shape."""
    names = ("0.png", "1.png") if place % 2 == 0 else ("2.png", "3.png")
    found = []
    for name in names:
        with Image.open(bench.pictures / name) as picture:
            found.append(pixels.to_tensor(picture.convert("RGB")))
    return bench.coder.encode(torch.stack(found)) * (1 + place)


# -- the text ----------------------------------------------------------------------------------------------------


def _read(bench: Bench) -> str:
    """A caption reads otherwise beside another reference, and alike beside other captions."""
    one, other = (_picture(_befores(bench) / name) for name in ("0.png", "2.png"))
    with_one, with_other = (bench.encoder.encode([LONG], [picture])[0] for picture in (one, other))
    unlike = with_one.lengths != with_other.lengths or not torch.equal(with_one.hidden, with_other.hidden)
    require(unlike, "text_reference_resolution is set, and the text encoder does not look at references.")
    beside = bench.encoder.encode([SHORT, LONG], [one])[1]
    require(beside.lengths == with_one.lengths, "with references, a caption has another length beside other captions.")
    near = farthest(beside.hidden, with_one.hidden) <= CLOSE * max(1.0, float(with_one.hidden.abs().max()))
    require(near, "with references, a caption is encoded otherwise beside other captions.")
    return f"{with_one.lengths[0]} tokens of text with one"


def _picture(path: Path) -> Image.Image:
    with Image.open(path) as picture:
        return picture.convert("RGB").resize((112, 112))


def _befores(bench: Bench) -> Path:
    """A reference for each of the four pictures, by name."""
    folder = bench.folder / "references"
    if not folder.exists():
        folder.mkdir(parents=True)
        for number, colour in enumerate(("yellow", "green", "blue", "red")):
            size = (bench.side, bench.side) if number % 2 else (bench.wide.width, bench.wide.height)
            draw("square", COLOURS[colour], size=size, center=(0.5, 0.3)).save(folder / f"{number}.png")
    return folder
