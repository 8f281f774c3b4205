"""Whether a drawn picture shows anything, judged from its pixels: black, flat, saturated, or far too little in it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image

SIDE = 128  # pixels of a longer side that a picture is judged at
DARK, FLAT, BURNT = 6.0, 3.0, 0.5
"""Brightest mean and spread of a black picture, spread of a flat one, share of clipped colours of a saturated one."""

FADED = 0.5
"""Share of the usual entropy under which a picture collapsed.

An absolute bound would take every flat drawing for a collapse: the toy's own training pictures hold 0.5 to 1.5 bits,
where photographs hold 5 to 7.5.
"""


def shows_nothing(picture: Image.Image) -> str:
    """What is wrong with a picture that shows nothing: black, flat or saturated; empty where it shows something."""
    from PIL import ImageChops, ImageStat

    seen = _small(picture)
    measured = ImageStat.Stat(seen)
    mean, spread = max(measured.mean), max(measured.stddev)
    if mean < DARK and spread < DARK:
        return "black"
    if spread < FLAT:
        return "flat"
    red, green, blue = seen.split()
    dark = ImageChops.darker(ImageChops.darker(red, green), blue).point(lambda value: 255 * (value <= 2))
    light = ImageChops.lighter(ImageChops.lighter(red, green), blue).point(lambda value: 255 * (value >= 253))
    clipped = ImageChops.darker(dark, light).histogram()[255]
    return "saturated" if clipped > BURNT * seen.width * seen.height else ""


def entropy(picture: Image.Image) -> float:
    """The bits of brightness that a pixel of the picture holds: 0 of one grey, 8 of every grey alike."""
    counts = _small(picture).convert("L").histogram()
    shares = [one / sum(counts) for one in counts if one]
    return -sum(share * math.log2(share) for share in shares)


def collapsed(bits: float, usual: Sequence[float], taught: Sequence[float]) -> bool:
    """Whether a picture holds under half of what others of its prompt hold, and of the poorest training picture.

    Both are needed: a flat style that is being learned holds little too, and so does a prompt for a white wall.
    """
    if not usual or not taught:
        return False
    return bits < FADED * statistics.median(usual) and bits < FADED * min(taught)


def _small(picture: Image.Image) -> Image.Image:
    seen = picture.convert("RGB")
    seen.thumbnail((SIDE, SIDE))
    return seen
