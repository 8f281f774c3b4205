"""Folders to described samples: which pictures, how often, with which captions; no pixel is decoded here."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lorakit.buckets import Fit, Shape, fit
from lorakit.errors import DataError
from lorakit.settings import PlannedData

if TYPE_CHECKING:
    from PIL import Image

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
REPEATS = re.compile(r"^(\d+)_(.+)$")  # kohya's convention: 40_maya is shown 40 times an epoch
SIDEWAYS = (5, 6, 7, 8)  # EXIF orientations that swap width and height
MUCH = 0.25  # share of a picture that may be cut away before it is worth saying
ORIENTATION = 0x0112  # the EXIF tag
STORED_SIDES = (0x0100, 0x0101)  # the tags of a TIFF's width and height


@dataclass(frozen=True, slots=True)
class Sample:
    """One picture with its caption; `size` is as seen, after EXIF orientation."""

    path: Path
    caption: str
    size: Shape
    fit: Fit
    repeats: int
    folder: str


@dataclass(frozen=True, slots=True)
class Dataset:
    """Every sample in a fixed order, and what is worth saying about them."""

    samples: tuple[Sample, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def passes(self) -> int:
        """Pictures shown in one epoch, repeats counted."""
        return sum(sample.repeats for sample in self.samples)

    def buckets(self) -> dict[Shape, int]:
        """Pictures per bucket, repeats counted, by shape."""
        counts: Counter[Shape] = Counter()
        for sample in self.samples:
            counts[sample.fit.shape] += sample.repeats
        return dict(sorted(counts.items()))


@dataclass(frozen=True, slots=True)
class _Folder:
    path: Path
    repeats: int
    data: PlannedData


def index(data: Sequence[PlannedData], side_multiple: int) -> Dataset:
    """Every picture of the folders with its caption, or a DataError that names what cannot be used."""
    samples: list[Sample] = []
    uncaptioned: list[tuple[Path, str]] = []
    unreadable: list[str] = []
    small = 0
    for folder in (one for entry in data for one in _folders(entry)):
        for path in _pictures(folder.path):
            size = _size(path, unreadable)
            if size is None or not _large_enough(path, size, side_multiple, unreadable):
                continue
            caption = _caption(path, folder.data, uncaptioned)
            brought = fit(size, folder.data.resolution, side_multiple)
            small += size.width * size.height < (folder.data.resolution - side_multiple) ** 2
            samples.append(Sample(path, caption, size, brought, folder.repeats, folder.path.name))
    if unreadable:
        raise DataError(
            f"{_count(len(unreadable), 'picture')} cannot be used: {_some(unreadable)}",
            fix="Mend, replace or remove them; nothing was started.",
        )
    notes = (*_caption_notes(uncaptioned, len(samples)), *_size_notes(samples, small), *_folder_notes(data))
    _check_paths_are_distinct(samples)
    return Dataset(tuple(samples), notes)


def _folders(data: PlannedData) -> Iterator[_Folder]:
    """The folder itself, or its sub-folders that are named `40_name` where it holds no pictures of its own."""
    root = Path(data.folder).expanduser()
    if not root.exists():
        raise DataError(f"there is no folder {root}", where="data.folder", fix="Check the path.")
    if not root.is_dir():
        raise DataError(f"{root} is a file, not a folder", where="data.folder", fix="Name the folder it is in.")
    if any(True for _ in _pictures(root)):
        yield _Folder(root, _repeats(root, data), data)
        return
    inner = [path for path in sorted(root.iterdir()) if path.is_dir() and REPEATS.match(path.name)]
    inner = [path for path in inner if any(True for _ in _pictures(path))]
    if not inner:
        raise DataError(
            f"{root} holds no pictures",
            where="data.folder",
            fix=f"Pictures end in {', '.join(SUFFIXES)}; sub-folders count when named like 40_name.",
        )
    for path in inner:
        yield _Folder(path, _repeats(path, data), data)


def _repeats(folder: Path, data: PlannedData) -> int:
    named = REPEATS.match(folder.resolve().name)
    if data.repeats is not None:
        return data.repeats
    if named and not int(named.group(1)):
        raise DataError(f"{folder} is shown 0 times, by its name", fix="Rename it, set data.repeats, or leave it out.")
    return int(named.group(1)) if named else 1


def _pictures(folder: Path) -> Iterator[Path]:
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


def _size(path: Path, unreadable: list[str]) -> Shape | None:
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


def _large_enough(path: Path, size: Shape, side_multiple: int, unreadable: list[str]) -> bool:
    if min(size.width, size.height) >= side_multiple:
        return True
    unreadable.append(f"{path} ({size} is smaller than one patch, {side_multiple} pixels)")
    return False


def _caption(path: Path, data: PlannedData, uncaptioned: list[tuple[Path, str]]) -> str:
    """The picture's caption with the folder's trigger; a picture without text of its own is noted."""
    text = "" if data.captions == "none" else _text_beside(path, data.captions)
    if not text and (data.captions != "none" or not data.trigger):
        uncaptioned.append((path, data.trigger))
    if "[trigger]" in text and not data.trigger:
        raise DataError(
            f"the caption of {path} holds [trigger], and no trigger word is named", fix="Say --trigger WORD."
        )
    return with_trigger(text, data.trigger)


def _text_beside(path: Path, extension: str) -> str:
    """The text file's words in one line; empty where there is no file."""
    file = path.with_suffix(f".{extension}")
    try:
        return " ".join(file.read_text(encoding="utf-8-sig").split())
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"the caption {file} cannot be read", why=str(error), fix="Save it as UTF-8.") from error


def with_trigger(caption: str, trigger: str) -> str:
    """The caption with `[trigger]` replaced, and with the trigger put first where the caption lacks it."""
    if not trigger:
        return caption
    caption = caption.replace("[trigger]", trigger)
    if re.search(rf"(?<!\w){re.escape(trigger)}(?!\w)", caption, re.IGNORECASE):
        return caption
    return f"{trigger}, {caption}" if caption else trigger


def _caption_notes(uncaptioned: Sequence[tuple[Path, str]], total: int) -> tuple[str, ...]:
    mute = [str(path) for path, trigger in uncaptioned if not trigger]
    if mute:
        raise DataError(
            f"{_count(len(mute), 'picture')} of {total} without a caption: {_some(mute)}",
            where="data",
            fix="Write a text file of the same name beside each, or name a trigger word (--trigger) to stand alone.",
        )
    if not uncaptioned:
        return ()
    return (f"{_count(len(uncaptioned), 'picture')} of {total} without a caption; the trigger word stands alone there",)


def _size_notes(samples: Sequence[Sample], small: int) -> tuple[str, ...]:
    cut = sum(sample.fit.cropped > MUCH for sample in samples)
    found = (
        (small, "smaller than the training resolution, taught at its own size"),
        (cut, "cut by more than a quarter to fit a bucket"),
    )
    return tuple(f"{_count(count, 'picture')} of {len(samples)} {what}" for count, what in found if count)


def _folder_notes(data: Sequence[PlannedData]) -> tuple[str, ...]:
    """Sub-folders that look meant and are not read, because the folder holds pictures of its own."""
    roots = [Path(entry.folder).expanduser() for entry in data]
    passed = [
        str(inner)
        for root in roots
        if any(True for _ in _pictures(root))
        for inner in sorted(root.iterdir())
        if inner.is_dir() and REPEATS.match(inner.name) and inner not in roots
    ]
    return (f"not read, because the folder above holds pictures itself: {_some(passed)}",) if passed else ()


def _check_paths_are_distinct(samples: Iterable[Sample]) -> None:
    counts = Counter(sample.path.resolve() for sample in samples)
    twice = [str(path) for path, count in counts.items() if count > 1]
    if twice:
        raise DataError(
            f"{_count(len(twice), 'picture')} are named by two data folders: {_some(twice)}",
            fix="Name each folder once; use repeats to show pictures more often.",
        )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"


def _some(names: Sequence[str], most: int = 5) -> str:
    shown = "; ".join(names[:most])
    return f"{shown}; and {len(names) - most} more" if len(names) > most else shown
