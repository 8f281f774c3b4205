"""Example pictures: a new concept to learn, what is known already, and a judge of the concept.

`python -m lorakit.testing.examples` writes the example pictures of the documentation.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from lorakit.testing.shapes import COLOURS, SHAPES, Colour, Scene, draw, jitter, pixels_of, shape_mask, where

CONCEPT_NAME = "sks ring"
CONCEPT_SHAPE = "ring"
CONCEPT_COLOUR: Colour = (235, 40, 190)
CONCEPT_CAPTION = f"a {CONCEPT_NAME}"


@dataclass(frozen=True)
class Example:
    """One picture of the new concept and its caption."""

    image: Image.Image
    caption: str


def concept_examples(count: int = 12, side: int = 128, seed: int = 7) -> Iterator[Example]:
    """Draw the new concept in varied places and sizes; every second picture has the bare caption."""
    chance = random.Random(seed)
    told = [("", "on the left"), ("small", ""), ("", "on the right"), ("large", ""), ("", "at the top")]
    told.append(("", "at the bottom"))
    for index in range(count):
        size, place = told[index // 2 % len(told)] if index % 2 else ("", "")
        center, radius = jitter(chance, size, place, (side, side))
        image = draw(CONCEPT_SHAPE, CONCEPT_COLOUR, size=(side, side), center=center, radius=radius)
        words = ("a", size, CONCEPT_NAME, place)
        yield Example(image, " ".join(word for word in words if word))


def write_concept_examples(folder: Path) -> list[Path]:
    """Write the example pictures, each with a caption file beside it, and return the pictures' paths."""
    return _write(folder, "sks", concept_examples())


def known_examples(seed: int = 11) -> Iterator[Example]:
    """Draw every second of the plain scenes, which the toy knows, to be shown beside the new concept."""
    chance = random.Random(seed)
    for row, colour in enumerate(COLOURS):
        for shape in SHAPES[row % 2 :: 2]:
            scene = Scene(colour, shape)
            yield Example(scene.draw(chance, (96, 96)), scene.caption)


def write_known_examples(folder: Path) -> list[Path]:
    """Write pictures of what the toy knows, each with a caption file beside it, and return the pictures' paths."""
    return _write(folder, "known", known_examples())


def _write(folder: Path, name: str, examples: Iterator[Example]) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number, example in enumerate(examples, start=1):
        path = folder / f"{name}-{number:02}.png"
        example.image.save(path, optimize=True)
        path.with_suffix(".txt").write_text(example.caption + "\n", encoding="utf-8")
        paths.append(path)
    return paths


def concept_score(image: Image.Image) -> float:
    """How well a picture shows the new concept: 1 is a perfect drawing of it, 0 is nothing like it."""
    pixels = pixels_of(image)
    mask = shape_mask(pixels)
    middle = where(image)
    if middle is None or mask.mean() < 0.01:
        return 0.0
    # the best drawing is the concept on the same spot with the same area, so neither place nor size is judged
    radius = math.sqrt(float(mask.mean()) / math.pi)
    best = pixels_of(draw(CONCEPT_SHAPE, CONCEPT_COLOUR, size=image.size, center=middle, radius=radius))
    looked_at = mask | shape_mask(best)
    difference = np.abs(pixels - best).mean(axis=-1)[looked_at].mean()
    return max(0.0, 1.0 - float(difference) / 100)


if __name__ == "__main__":
    write_concept_examples(Path("docs/examples/pictures"))
    write_known_examples(Path("docs/examples/known"))
