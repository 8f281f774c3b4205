"""Small pictures for tests."""

import random

from PIL import Image


def picture(path, size=(64, 64), caption=None, colour="tomato", **save):
    """Write a picture of one colour, with its caption beside it; the suffix decides the format."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path, **save)
    if caption is not None:
        path.with_suffix(".txt").write_text(caption, encoding="utf-8")
    return path


def scene(seed, size=(256, 256)):
    """A picture with detail at every scale, as photographs have it; another one for each seed."""
    draw = random.Random(seed)
    made, side, octaves = Image.new("RGB", size, "grey"), 4, 1
    while side < max(size):
        width, height = min(side, size[0]), min(side, size[1])
        noise = Image.frombytes("RGB", (width, height), draw.randbytes(3 * width * height))
        made = Image.blend(made, noise.resize(size, Image.Resampling.BICUBIC), 1 / octaves)
        side, octaves = 2 * side, octaves + 1
    return made
