"""Picture files: found, and measured without decoding a pixel."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from lorakit.buckets import Shape
from lorakit.errors import DataError

if TYPE_CHECKING:
    from PIL import Image

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
SIDEWAYS = (5, 6, 7, 8)  # EXIF orientations that swap width and height
ORIENTATION = 0x0112  # the EXIF tag
STORED_SIDES = (0x0100, 0x0101)  # the tags of a TIFF's width and height


def found(folder: Path) -> Iterator[Path]:
    """The pictures of a folder, by name; sub-folders and hidden files are left out."""
    try:
        with os.scandir(folder) as entries:
            names = sorted(
                entry.name
                for entry in entries
                if entry.name.lower().endswith(SUFFIXES) and not entry.name.startswith(".") and entry.is_file()
            )
    except OSError as error:
        raise DataError(f"the folder {folder} cannot be read", why=str(error)) from error
    return (folder / name for name in names)


def size(path: Path, unreadable: list[str]) -> Shape | None:
    """The size of a picture as seen; None where it is none, with the reason added to `unreadable`."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            width, height = image.size
            if image.format == "TIFF":  # newer Pillow gives the size as seen, older the size as stored
                width, height = (image.getexif()[tag] for tag in STORED_SIDES)
            if orientation(image) in SIDEWAYS:
                width, height = height, width
            return Shape(width, height)
    except UnidentifiedImageError:
        unreadable.append(f"{path} (not a picture)")
    except (OSError, ValueError, LookupError, SyntaxError, Image.DecompressionBombError) as error:
        unreadable.append(f"{path} ({error})")
    return None


def orientation(image: Image.Image) -> int:
    """The EXIF orientation of an opened picture, 1 where it has none; no pixel is decoded for it.

    A PNG whose EXIF stands after its pixels is taken as it lies, because finding out would mean decoding it.
    """
    if image.format == "PNG" and "exif" not in image.info:
        return 1
    return int(image.getexif().get(ORIENTATION, 1))
