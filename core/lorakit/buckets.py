"""Which shape a picture is trained in: aspect-ratio buckets of nearly one area, never enlarging a picture."""

from __future__ import annotations

import bisect
import math
from dataclasses import dataclass
from functools import lru_cache


@dataclass(frozen=True, slots=True, order=True)
class Shape:
    """Width and height in pixels."""

    width: int
    height: int

    def __str__(self) -> str:
        return f"{self.width}x{self.height}"


@dataclass(frozen=True, slots=True)
class Fit:
    """How a picture is brought to its bucket: resized to `resized`, then cut to `shape` from `left`, `top`."""

    shape: Shape
    resized: Shape
    left: int
    top: int

    @property
    def cropped(self) -> float:
        """Share of the resized picture that is cut away."""
        return 1 - self.shape.width * self.shape.height / (self.resized.width * self.resized.height)


LONGEST = 4  # a bucket's long side is at most this many times its short side


@lru_cache(maxsize=256)
def shapes(resolution: int, side_multiple: int) -> tuple[Shape, ...]:
    """Every bucket whose area is at most resolution², by width; sides are multiples of `side_multiple`.

    Sides step by about a sixteenth of the resolution, so that few buckets serve many pictures.
    """
    step = side_multiple * max(1, resolution // (16 * side_multiple))
    area = resolution * resolution
    found = set()
    for width in range(step, LONGEST * resolution + 1, step):
        height = area // width // step * step
        if height >= step and max(width, height) <= LONGEST * min(width, height):
            found |= {Shape(width, height), Shape(height, width)}  # so that upright pictures fare like wide ones
    return tuple(sorted(found)) or (Shape(side_multiple, side_multiple),)


@lru_cache(maxsize=256)
def _by_aspect(resolution: int, side_multiple: int) -> tuple[tuple[float, ...], tuple[Shape, ...]]:
    """The buckets by the logarithm of their aspect ratio, the largest of each ratio."""
    best: dict[float, Shape] = {}
    for shape in shapes(resolution, side_multiple):
        aspect = math.log(shape.width / shape.height)
        if aspect not in best or shape.width > best[aspect].width:
            best[aspect] = shape
    return tuple(sorted(best)), tuple(best[aspect] for aspect in sorted(best))


@lru_cache(maxsize=4096)
def fit(picture: Shape, resolution: int, side_multiple: int) -> Fit:
    """How `picture` is brought to the bucket nearest to its aspect ratio.

    A picture smaller than the resolution gets the buckets of its own area, so that nothing is enlarged by more than
    the rounding to a step; but one longer than 4 to 1 is enlarged until its short side fills the longest bucket, and
    cut. The picture must be at least `side_multiple` on both sides.
    """
    own = math.isqrt(picture.width * picture.height) // side_multiple * side_multiple
    aspects, table = _by_aspect(max(side_multiple, min(resolution, own)), side_multiple)
    aspect = math.log(picture.width / picture.height)
    place = bisect.bisect(aspects, aspect)
    near = table[max(0, place - 1) : place + 1]
    shape = min(near, key=lambda one: (abs(math.log(one.width / one.height) - aspect), -one.width * one.height))
    scale = max(shape.width / picture.width, shape.height / picture.height)
    resized = Shape(max(shape.width, round(picture.width * scale)), max(shape.height, round(picture.height * scale)))
    return Fit(shape, resized, (resized.width - shape.width) // 2, (resized.height - shape.height) // 2)
