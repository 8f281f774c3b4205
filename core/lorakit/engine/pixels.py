"""Picture files to pixels: upright, RGB, resized and cut as the plan says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from lorakit.buckets import Shape
from lorakit.dataset import Framed
from lorakit.errors import DataError
from lorakit.pictures import orientation

VERSION = 1  # of what happens to pixels here; raised when it changes, so that cached latents are made anew
SIXTEEN_BIT = ("I", "I;16", "I;16B", "I;16L", "I;16N")
TO_8_BIT = 257  # 65535 / 255
AGAIN = "Put it back as it was, or start a new run."


def load(picture: Framed) -> Tensor:
    """The picture's pixels, (3, H, W) float32 in [-1, 1], in the shape it is framed to."""
    brought = picture.fit
    rgb = decode(picture.path, picture.size)
    whole = rgb.resize((brought.resized.width, brought.resized.height), Image.Resampling.LANCZOS)
    box = (brought.left, brought.top, brought.left + brought.shape.width, brought.top + brought.shape.height)
    return to_tensor(whole.crop(box))


def decode(path: Path, size: Shape) -> Image.Image:
    """The whole picture, upright and RGB; DataError where it cannot be decoded or is no longer of `size`."""
    try:
        with Image.open(path) as image:
            turned = orientation(image) != 1
            rgb = to_rgb(ImageOps.exif_transpose(image) if turned else image)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"the picture {path} cannot be decoded", why=str(error), fix="Replace or remove it.") from error
    if rgb.size != (size.width, size.height):
        raise DataError(f"the picture {path} was {size} when the run was planned, and is not", fix=AGAIN)
    return rgb


def resized(path: Path, size: Shape, shape: Shape) -> Image.Image:
    """The picture at another shape, with the resampling of diffusers' VaeImageProcessor."""
    return decode(path, size).resize((shape.width, shape.height), Image.Resampling.LANCZOS)


def to_rgb(image: Image.Image) -> Image.Image:
    """The picture in 8-bit RGB: transparency over white, 16-bit grey scaled down, CMYK and palettes converted."""
    if image.mode in SIXTEEN_BIT:
        grey = np.asarray(image, dtype=np.float64)
        image = Image.fromarray(np.clip(grey / TO_8_BIT + 0.5, 0, 255).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        layer = image.convert("RGBA")
        white = Image.new("RGBA", layer.size, "white")
        return Image.alpha_composite(white, layer).convert("RGB")
    return image.convert("RGB")


def to_tensor(image: Image.Image) -> Tensor:
    """(3, H, W) float32 in [-1, 1]."""
    array = np.asarray(image, dtype=np.float32)
    return torch.from_numpy(array / 127.5 - 1).permute(2, 0, 1).contiguous()


def to_image(pixels: Tensor) -> Image.Image:
    """(3, H, W) in about [-1, 1] as an 8-bit picture, rounded as diffusers' VaeImageProcessor does."""
    unit = (pixels.float() / 2 + 0.5).clamp(0, 1)
    return Image.fromarray((unit.permute(1, 2, 0).cpu().numpy() * 255).round().astype(np.uint8))
