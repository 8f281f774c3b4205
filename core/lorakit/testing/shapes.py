"""A little world of coloured shapes: pictures, captions, and a judge that says what a picture shows.

Needs numpy and Pillow, not torch. The shipped toy models were trained on this world, so a picture that they make can
be judged without a network.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

Colour: TypeAlias = tuple[int, int, int]
Pixels: TypeAlias = npt.NDArray[np.float64]
Mask: TypeAlias = npt.NDArray[np.bool_]
Point: TypeAlias = tuple[float, float]
Painter: TypeAlias = Callable[[ImageDraw.ImageDraw, Point, float, Colour], None]

SIDE = 48
BACKGROUND: Colour = (45, 45, 45)
WHITE: Colour = (255, 255, 255)
COLOURS: Mapping[str, Colour] = {
    "red": (230, 30, 30),
    "orange": (245, 140, 25),
    "yellow": (240, 225, 40),
    "green": (30, 200, 60),
    "cyan": (40, 220, 220),
    "blue": (40, 80, 235),
    "purple": (140, 60, 200),
    "white": (245, 245, 245),
}
SHAPES = ("circle", "square", "triangle", "cross", "diamond", "star")
SIZES: Mapping[str, tuple[float, float]] = {"small": (0.13, 0.16), "": (0.23, 0.28), "large": (0.33, 0.37)}
PLACES: Mapping[str, tuple[int, int]] = {
    "": (0, 0),
    "on the left": (-1, 0),
    "on the right": (1, 0),
    "at the top": (0, -1),
    "at the bottom": (0, 1),
}


# Drawing ------------------------------------------------------------------------------------------------


def _circle(pen: ImageDraw.ImageDraw, center: Point, radius: float, colour: Colour) -> None:
    x, y = center
    pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)


def _square(pen: ImageDraw.ImageDraw, center: Point, radius: float, colour: Colour) -> None:
    (x, y), half = center, 0.86 * radius
    pen.rectangle((x - half, y - half, x + half, y + half), fill=colour)


def _triangle(pen: ImageDraw.ImageDraw, center: Point, radius: float, colour: Colour) -> None:
    x, y = center
    wide, up, down = 1.1 * radius, 1.1 * radius, 0.85 * radius
    pen.polygon([(x, y - up), (x - wide, y + down), (x + wide, y + down)], fill=colour)


def _cross(pen: ImageDraw.ImageDraw, center: Point, radius: float, colour: Colour) -> None:
    (x, y), arm = center, 0.36 * radius
    pen.rectangle((x - radius, y - arm, x + radius, y + arm), fill=colour)
    pen.rectangle((x - arm, y - radius, x + arm, y + radius), fill=colour)


def _diamond(pen: ImageDraw.ImageDraw, center: Point, radius: float, colour: Colour) -> None:
    (x, y), reach = center, 1.15 * radius
    pen.polygon([(x, y - reach), (x + reach, y), (x, y + reach), (x - reach, y)], fill=colour)


def _star(pen: ImageDraw.ImageDraw, center: Point, radius: float, colour: Colour) -> None:
    x, y = center
    reaches = [1.25 * radius, 0.55 * radius] * 5
    angles = [index * math.pi / 5 for index in range(10)]
    pen.polygon(
        [
            (x + reach * math.sin(angle), y - reach * math.cos(angle))
            for reach, angle in zip(reaches, angles, strict=True)
        ],
        fill=colour,
    )


def _ring(pen: ImageDraw.ImageDraw, center: Point, radius: float, colour: Colour) -> None:
    _circle(pen, center, radius, colour)
    _circle(pen, center, 0.52 * radius, WHITE)


def _face(pen: ImageDraw.ImageDraw, center: Point, radius: float, colour: Colour) -> None:
    x, y = center
    _circle(pen, center, radius, colour)
    for side in (-1, 1):
        _circle(pen, (x + side * 0.38 * radius, y - 0.25 * radius), 0.19 * radius, WHITE)
    mouth = (x - 0.6 * radius, y - 0.5 * radius, x + 0.6 * radius, y + 0.65 * radius)
    pen.chord(mouth, start=20, end=160, fill=WHITE)


PAINTERS: Mapping[str, Painter] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "cross": _cross,
    "diamond": _diamond,
    "star": _star,
    "ring": _ring,
    "face": _face,
}


def draw(
    shape: str,
    colour: Colour,
    *,
    size: tuple[int, int] = (SIDE, SIDE),
    center: Point = (0.5, 0.5),
    radius: float = 0.26,
    background: Colour = BACKGROUND,
) -> Image.Image:
    """Draw one shape; `center` is in parts of width and height, `radius` in parts of the root of the area."""
    finer = 4
    width, height = size[0] * finer, size[1] * finer
    canvas = Image.new("RGB", (width, height), background)
    middle = (center[0] * width, center[1] * height)
    PAINTERS[shape](ImageDraw.Draw(canvas), middle, radius * math.sqrt(width * height), colour)
    return canvas.resize(size, Image.Resampling.BOX)


# Scenes: what captions can say --------------------------------------------------------------------------


@dataclass(frozen=True)
class Scene:
    """One shape as a caption tells it; an empty size means medium, an empty place the middle."""

    colour: str
    shape: str
    size: str = ""
    place: str = ""

    @property
    def caption(self) -> str:
        """The caption, such as "a small red circle on the left"."""
        return " ".join(word for word in ("a", self.size, self.colour, self.shape, self.place) if word)

    def draw(self, chance: random.Random, size: tuple[int, int] = (SIDE, SIDE)) -> Image.Image:
        """Draw the scene once, with a little jitter that the caption does not tell."""
        center, radius = jitter(chance, self.size, self.place, size)
        return draw(self.shape, COLOURS[self.colour], size=size, center=center, radius=radius)


def jitter(chance: random.Random, size_word: str, place: str, size: tuple[int, int]) -> tuple[Point, float]:
    """Pick a center and a radius that suit the words, so that the shape stays inside the picture."""
    width, height = size
    root = math.sqrt(width * height)
    radius = chance.uniform(*SIZES[size_word])
    center = []
    for side, direction in zip((width, height), PLACES[place], strict=True):
        reach = radius * root / side
        # the largest painters reach a quarter beyond the radius; 0.03 keeps them off the edge
        room = max(0.0, 0.5 - 1.1 * reach - 0.03)
        center.append(0.5 + direction * room + chance.uniform(-0.04, 0.04))
    return (center[0], center[1]), radius


def plain_scenes() -> list[Scene]:
    """List every colour with every shape, in a fixed order: the exam of caption following."""
    return [Scene(colour, shape) for colour in COLOURS for shape in SHAPES]


def random_scene(chance: random.Random) -> Scene:
    """Pick a scene; two in five are plain, the others tell a size, a place or both."""
    size = chance.choice(list(SIZES)) if chance.random() < 0.5 else ""
    place = chance.choice(list(PLACES)) if chance.random() < 0.5 else ""
    return Scene(chance.choice(list(COLOURS)), chance.choice(SHAPES), size, place)


def random_picture(chance: random.Random, size: tuple[int, int] = (SIDE, SIDE)) -> Image.Image:
    """Draw any shape, ring or face in any colour: what an image coder must be able to show."""
    words = chance.choice(list(SIZES)), chance.choice(list(PLACES))
    center, radius = jitter(chance, *words, size)
    colour = _random_colour(chance)
    background = _random_colour(chance) if chance.random() < 0.1 else BACKGROUND
    shape = chance.choice([*SHAPES, "ring", "ring", "ring", "face", "face"])
    return draw(shape, colour, size=size, center=center, radius=radius, background=background)


def _random_colour(chance: random.Random) -> Colour:
    return chance.randint(0, 255), chance.randint(0, 255), chance.randint(0, 255)


# The judge ----------------------------------------------------------------------------------------------


def classify(image: Image.Image) -> tuple[str, str] | None:
    """Name the colour and the shape that a picture shows, or say None where it shows nothing."""
    pixels = pixels_of(image)
    mask = shape_mask(pixels)
    if mask.mean() < 0.01:
        return None
    median = np.median(pixels[mask], axis=0)
    colour = min(COLOURS, key=lambda name: float(np.abs(np.array(COLOURS[name]) - median).sum()))
    outline = _outline(mask)
    shape = max(SHAPES, key=lambda name: _overlap(outline, _template(name)))
    return colour, shape


def accuracy(images: list[Image.Image], scenes: list[Scene]) -> float:
    """The part of the pictures that show both the colour and the shape of their scene."""
    pairs = zip(images, scenes, strict=True)
    right = [classify(image) == (scene.colour, scene.shape) for image, scene in pairs]
    return sum(right) / len(right)


def where(image: Image.Image) -> Point | None:
    """The middle of what is shown, in parts of width and height, or None where nothing is shown."""
    mask = shape_mask(pixels_of(image))
    if not mask.any():
        return None
    rows, columns = np.nonzero(mask)
    return float(columns.mean() + 0.5) / mask.shape[1], float(rows.mean() + 0.5) / mask.shape[0]


def pixels_of(image: Image.Image) -> Pixels:
    """The picture as (H, W, 3) numbers from 0 to 255."""
    return np.asarray(image.convert("RGB"), dtype=np.float64)


def shape_mask(pixels: Pixels) -> Mask:
    """Where something other than the background is shown, (H, W)."""
    mask: Mask = np.abs(pixels - np.array(BACKGROUND)).max(axis=-1) > 40
    return mask


def _outline(mask: Mask) -> Mask:
    """The mask moved to its centroid and scaled to one area, so that place and size do not matter."""
    rows, columns = np.nonzero(mask)
    steps = np.linspace(-1.1, 1.1, 48) * math.sqrt(len(rows))
    taken_rows = np.round(rows.mean() + steps).astype(int)
    taken_columns = np.round(columns.mean() + steps).astype(int)
    inside = np.outer(_within(taken_rows, mask.shape[0]), _within(taken_columns, mask.shape[1]))
    found = mask[np.ix_(taken_rows.clip(0, mask.shape[0] - 1), taken_columns.clip(0, mask.shape[1] - 1))]
    outline: Mask = found & inside
    return outline


def _within(indices: npt.NDArray[np.int_], side: int) -> Mask:
    within: Mask = (indices >= 0) & (indices < side)
    return within


def _template(shape: str) -> Mask:
    if shape not in _TEMPLATES:
        _TEMPLATES[shape] = _outline(shape_mask(pixels_of(draw(shape, WHITE, size=(128, 128)))))
    return _TEMPLATES[shape]


_TEMPLATES: dict[str, Mask] = {}


def _overlap(first: Mask, second: Mask) -> float:
    return float((first & second).sum() / max(1, (first | second).sum()))
