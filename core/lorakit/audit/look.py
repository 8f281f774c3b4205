"""One picture file, looked at: whether it can be decoded whole, and the few numbers that findings are made from.

Pillow and hashlib do the work; no numpy, so that the deciding half stays light. Everything that is kept is small.
"""

from __future__ import annotations

import hashlib
import math
import warnings
from dataclasses import dataclass
from io import BytesIO
from operator import mul
from pathlib import Path
from typing import TYPE_CHECKING

from lorakit.pictures import orientation, size_of

if TYPE_CHECKING:
    from PIL import Image

VERSION = 2  # of what is measured here; raised when it changes, so that pictures are looked at anew
BASE = 1024  # pictures are measured at about this side, or at their own where that is smaller
THUMB = 96  # side of the small picture from which hashes and colours are taken
SPOTS = 4  # colours are kept for so many places a side
GREY = 10  # most that red, green and blue differ in a picture without colour, of 255
FLAT = 6  # most that a picture of one colour varies, of 255
SQUARES = tuple(value**2 for value in range(256))
OCTAVES = 4  # scales at which detail is measured, each half of the one before
SMALLEST = 16  # side below which detail is not measured
STRIPS = 4  # of a picture, in which detail is measured
WHOLE = 640 * 640  # pixels up to which a picture is measured whole


@dataclass(frozen=True, slots=True)
class Look:
    """What a picture file shows; `problem` says why it cannot be decoded, and is empty where it can.

    `hash` is a difference hash of 128 bits in hexadecimal, `colours` the red, green and blue of 4 x 4 places, `detail`
    how much brightness varies from pixel to pixel at the side `side`, at half of it, and so on.
    """

    digest: str = ""
    problem: str = ""
    truncated: bool = False
    width: int = 0
    height: int = 0
    transparent: bool = False
    grey: bool = False
    flat: bool = False
    hash: str = ""
    colours: str = ""
    side: float = 0.0
    detail: tuple[float, ...] = ()


def look(path: str) -> Look:
    """What the picture shows; every way in which a file can be broken is a `problem`, never an exception."""
    from PIL import Image

    digest, opened = "", False
    try:
        data = Path(path).read_bytes()
        digest = hashlib.sha256(data).hexdigest()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(BytesIO(data)) as image:
                opened = True
                return _shown(image, digest)
    except Exception as error:  # plugins of Pillow raise whatever they like
        reason = str(error) or type(error).__name__
        if "cannot identify image file" in reason:
            reason = "it is not a picture" if data.strip(b"\0") else "it is empty"
        return Look(digest, reason, opened and "truncated" in reason)


def thumbnail(path: str, side: int) -> bytes:
    """The picture as a JPEG of at most `side` pixels a side, upright and over white; empty where that cannot be."""
    from PIL import Image, ImageFile

    try:
        with warnings.catch_warnings(), Image.open(path) as image:
            warnings.simplefilter("ignore")
            turned = orientation(image)
            image.draft(None, (2 * side, 2 * side))
            image.load()
            small = _upright(_over_white(image), turned)
            small.thumbnail((side, side), reducing_gap=2.0)
            made = BytesIO()
            small.save(made, "JPEG", quality=70)
            return made.getvalue()
    except Exception:  # the page says what is wrong with it
        assert not ImageFile.LOAD_TRUNCATED_IMAGES
        return b""


def _shown(image: Image.Image, digest: str) -> Look:
    size, turned = size_of(image), orientation(image)
    share = BASE / math.sqrt(size.width * size.height)
    image.draft(None, (math.ceil(image.width * share), math.ceil(image.height * share)))
    image.load()
    rgb = _over_white(image)
    factor = max(1, int(math.sqrt(rgb.width * rgb.height) / BASE))
    base = rgb.reduce(factor) if factor > 1 else rgb
    small = _upright(_reduced(base), turned)
    hashed, colours = _prints(small)
    return Look(
        digest=digest,
        width=size.width,
        height=size.height,
        transparent=_see_through(image),
        grey=_without_colour(small),
        flat=all(highest - lowest <= FLAT for lowest, highest in _extremes(small)),
        hash=hashed,
        colours=colours,
        side=round(math.sqrt(base.width * base.height), 1),
        detail=tuple(_detail(base)),
    )


def prints(image: Image.Image) -> tuple[str, str]:
    """The hash and the colours of a picture in RGB that is upright and open already, as a look has them."""
    return _prints(_reduced(image))


def _reduced(base: Image.Image) -> Image.Image:
    return base.reduce(max(1, min(base.size) // THUMB))


def _prints(small: Image.Image) -> tuple[str, str]:
    import dhash
    from PIL import Image

    grays = small.convert("L").resize((9, 9), Image.Resampling.LANCZOS)
    hashed = f"{dhash.dhash_int(list(grays.tobytes())):032x}"
    return hashed, small.resize((SPOTS, SPOTS), Image.Resampling.BOX).tobytes().hex()


def _over_white(image: Image.Image) -> Image.Image:
    """In 8-bit RGB, as training sees it."""
    from PIL import Image

    if image.mode == "I" or image.mode.startswith("I;16"):
        return image.convert("I").point(lambda value: value * (1 / 257)).convert("L").convert("RGB")
    if _has_alpha(image):
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _has_alpha(image: Image.Image) -> bool:
    return image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info


def _see_through(image: Image.Image) -> bool:
    return _has_alpha(image) and _extremes(image.convert("RGBA"))[3][0] < 255


def _without_colour(small: Image.Image) -> bool:
    from PIL import ImageChops

    red, green, blue = small.split()
    differences = (ImageChops.difference(red, green), ImageChops.difference(green, blue))
    return all(_extremes(one)[0][1] <= GREY for one in differences)


def _extremes(image: Image.Image) -> list[tuple[int, int]]:
    """The lowest and the highest value of each channel."""
    return [channel.getextrema() for channel in image.split()]  # type: ignore[misc]


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    from PIL.Image import Transpose as Turn

    turns = {
        2: Turn.FLIP_LEFT_RIGHT,
        3: Turn.ROTATE_180,
        4: Turn.FLIP_TOP_BOTTOM,
        5: Turn.TRANSPOSE,
        6: Turn.ROTATE_270,
        7: Turn.TRANSVERSE,
        8: Turn.ROTATE_90,
    }
    return image.transpose(turns[orientation]) if orientation in turns else image


def _detail(image: Image.Image) -> list[float]:
    """Root mean square of the second difference along x and y, at the picture's scale, at half of it, and so on.

    It is taken from evenly spaced strips, a third of the picture: the rest says the same at three times the cost.
    """
    found = []
    grey, parts = _strips(image)
    for octave in range(OCTAVES):
        if -(-min(image.size) >> octave) < SMALLEST:
            break
        found.append(round(_second_difference(grey, parts), 3))
        grey = grey.reduce(2)
    return found


def _strips(image: Image.Image) -> tuple[Image.Image, int]:
    """Strips in grey, one below the other, and how many; the whole picture where it is small or low.

    Their height can be halved for every octave, so that a strip never shares a row with the next.
    """
    from PIL import Image

    halved = 2 ** (OCTAVES - 1)
    height = image.height // (3 * STRIPS) // halved * halved
    if image.width * image.height <= WHOLE or height < 2 * halved:
        return image.convert("L"), 1
    joined = Image.new("L", (image.width, height * STRIPS))
    for part in range(STRIPS):
        top = round(image.height * (part + 0.5) / STRIPS - height / 2)
        joined.paste(image.crop((0, top, image.width, top + height)).convert("L"), (0, height * part))
    return joined, STRIPS


def _second_difference(grey: Image.Image, parts: int) -> float:
    """Root mean square of how much the step from a pixel to the next of its row differs from that of the row below."""
    from PIL import ImageChops

    width, height = grey.size
    steps = ImageChops.subtract(grey, grey.crop((1, 0, width, height)), 1, 128)  # as large as the smaller of the two
    steps = ImageChops.difference(steps, steps.crop((0, 1, width - 1, height)))
    for part in range(1, parts):  # no difference where one strip meets the next
        row = height // parts * part
        steps.paste(0, (0, row - 1, width - 1, row))
    return math.sqrt(sum(map(mul, SQUARES, steps.histogram())) / ((width - 1) * (height - parts)))
