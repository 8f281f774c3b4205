"""Picture files: found, and measured without decoding a pixel."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from io import BytesIO
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
HEAD = 1 << 14  # bytes in which most JPEGs have told their size


def found(folder: Path) -> Iterator[Path]:
    """The pictures of a folder, by name; sub-folders and hidden files are left out."""
    return (folder / name for name in sorted(_names(folder)))


def any_in(folder: Path) -> bool:
    """Whether a folder holds pictures of its own."""
    return any(True for _ in _names(folder))


def _names(folder: Path) -> Iterator[str]:
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                name = entry.name
                if name.lower().endswith(SUFFIXES) and not name.startswith(".") and entry.is_file():
                    yield name
    except OSError as error:
        raise DataError(f"the folder {folder} cannot be read", why=str(error)) from error


def size(path: Path, unreadable: list[str]) -> Shape | None:
    """The size of a picture as seen; None where it is none, with the reason added to `unreadable`."""
    from PIL import Image, UnidentifiedImageError

    try:
        if (found := _size_by_head(path)) is not None:
            return found
        with Image.open(path) as image:
            return size_of(image)
    except UnidentifiedImageError:
        unreadable.append(f"{path} (not a picture)")
    except (OSError, ValueError, LookupError, SyntaxError, Image.DecompressionBombError) as error:
        unreadable.append(f"{path} ({error})")
    return None


def _size_by_head(path: Path) -> Shape | None:
    """The size of a JPEG by its first bytes, in three quarters of the time; None where they do not suffice."""
    from PIL import Image

    opened = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
    try:
        head = os.read(opened, HEAD)
    finally:
        os.close(opened)
    if not head.startswith(b"\xff\xd8\xff"):
        return None
    with suppress(Exception), Image.open(BytesIO(head), formats=("JPEG",)) as image:
        return size_of(image)
    return None


def size_of(image: Image.Image) -> Shape:
    """The size of an opened picture as seen."""
    width, height = image.size
    if image.format == "TIFF":  # newer Pillow gives the size as seen, older the size as stored
        width, height = (image.getexif()[tag] for tag in STORED_SIDES)
    if orientation(image) in SIDEWAYS:
        width, height = height, width
    return Shape(width, height)


def orientation(image: Image.Image) -> int:
    """The EXIF orientation of an opened picture, 1 where it has none; no pixel is decoded for it.

    A PNG whose EXIF stands after its pixels is taken as it lies, because finding out would mean decoding it.
    """
    told = image.info
    if image.format == "PNG" and "exif" not in told:
        return 1
    if image.format == "JPEG" and "exif" not in told and "xmp" not in told:  # where Pillow would look, ten times slower
        return 1
    return int(image.getexif().get(ORIENTATION, 1))
