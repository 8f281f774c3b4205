"""Folders and lists to described samples: which pictures, how often, with which captions and references."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from lorakit import captions, folders
from lorakit.buckets import Fit, Shape, fit
from lorakit.errors import DataError
from lorakit.pairs import Entry
from lorakit.recall import WORTH_IT, Recall
from lorakit.remembered import Notebook
from lorakit.words import count, some

if TYPE_CHECKING:  # plugins that bring a family are loaded for `lorakit --help`, which has no use for settings
    from lorakit.planned import PlannedData

MUCH = 0.25  # share of a picture that may be cut away before it is worth saying


@dataclass(frozen=True, slots=True)
class Framed:
    """A picture file, its size as seen, and how it is brought to the shape that is encoded."""

    path: Path
    size: Shape
    fit: Fit

    @property
    def sizes(self) -> tuple[int, int, int, int, int, int]:
        """Original height and width, top and left of the crop, height and width as encoded, all in pixels."""
        fit = self.fit
        return (self.size.height, self.size.width, fit.top, fit.left, fit.shape.height, fit.shape.width)


@dataclass(frozen=True, slots=True)
class Reference:
    """A picture that an editing model looks at: its shape for the image coder, and for the text encoder, if any."""

    path: Path
    size: Shape
    shape: Shape
    text_shape: Shape | None

    @property
    def framed(self) -> Framed:
        """The whole picture, squeezed a little where its aspect ratio is not quite the shape's."""
        return Framed(self.path, self.size, Fit(self.shape, self.shape, 0, 0))


@dataclass(frozen=True, slots=True, order=True)
class Bucket:
    """What samples of one batch must have in common: their shape, and those of their references."""

    shape: Shape
    references: tuple[Shape, ...] = ()

    def __str__(self) -> str:
        seen = ", ".join(map(str, self.references))
        return f"{self.shape} seeing {seen}" if seen else str(self.shape)


@dataclass(frozen=True, slots=True)
class Sample:
    """One picture with its caption; `size` is as seen, after EXIF orientation."""

    path: Path
    caption: str
    size: Shape
    fit: Fit
    repeats: int
    folder: str
    references: tuple[Reference, ...] = ()

    @property
    def framed(self) -> Framed:
        """The picture as it is taught."""
        return Framed(self.path, self.size, self.fit)

    @property
    def bucket(self) -> Bucket:
        """What this sample shares with others of its batch."""
        return Bucket(self.fit.shape, tuple(reference.shape for reference in self.references))


@dataclass(frozen=True, slots=True)
class Sizing:
    """How pictures are brought to size: targets to sides by `side_multiple`, references as the family says.

    `most` is how many references a sample may have; 0 where the model takes none.
    """

    side_multiple: int
    most: int = 0
    shape: Callable[[Shape], Shape] = lambda size: size
    text_shape: Callable[[Shape], Shape] | None = None


@dataclass(frozen=True, slots=True)
class Dataset:
    """Every sample in a fixed order, and what is worth saying about them."""

    samples: tuple[Sample, ...] = ()
    notes: tuple[str, ...] = ()
    held_out: tuple[Sample, ...] = ()
    """Pictures that are looked at and never trained on; none of `samples`."""

    @property
    def passes(self) -> int:
        """Pictures shown in one epoch, repeats counted."""
        return sum(sample.repeats for sample in self.samples)

    def digest(self) -> str:
        """What the run was planned for: names, sizes, repeats, captions and references, wherever the folders lie."""
        held_out = frozenset(self.held_out)
        made, between = hashlib.sha256(b"["), ""  # of one list in JSON, a sample at a time
        for sample in (*self.samples, *self.held_out):
            seen = [[one.path.name, str(one.size)] for one in sample.references]
            told = [sample.folder, sample.path.name, str(sample.size), sample.repeats, sample.caption, seen]
            if sample in held_out:
                told.append("held out")
            made.update(f"{between}{json.dumps(told)}".encode())
            between = ", "
        made.update(b"]")
        return made.hexdigest()

    def buckets(self) -> dict[Bucket, int]:
        """Pictures per bucket, repeats counted."""
        counts: Counter[Bucket] = Counter()
        for sample in self.samples:
            counts[sample.bucket] += sample.repeats
        return dict(sorted(counts.items()))


def index(data: Sequence[PlannedData], sizing: Sizing) -> Dataset:
    """Every picture of the folders with its caption, or a DataError that names what cannot be used."""
    samples: list[Sample] = []
    uncaptioned: list[tuple[Path, str]] = []
    unreadable: list[str] = []
    small = 0
    entries = [pair for one in data for pair in folders.entries(one)]
    recall = Recall(Notebook() if len(entries) >= WORTH_IT else None)
    sizes = [recall.size(entry.path, unreadable) for _, entry in entries]  # one kind of file after the other is faster
    for (folder, entry), size in zip(entries, sizes, strict=True):
        if size is None or not _large_enough(entry.path, size, sizing.side_multiple, unreadable):
            continue
        caption = _caption(entry, folder.data, recall, uncaptioned)
        brought = fit(size, folder.data.resolution, sizing.side_multiple)
        small += size.width * size.height < (folder.data.resolution - sizing.side_multiple) ** 2
        seen = tuple(_measured(entry.references, sizing, recall, unreadable))
        samples.append(Sample(entry.path, caption, size, brought, folder.repeats, folder.path.name, seen))
    recall.save()
    if unreadable:
        raise DataError(
            f"{count(len(unreadable), 'picture')} cannot be used: {some(unreadable)}",
            fix="Mend, replace or remove them; nothing was started.",
        )
    notes = (*_caption_notes(uncaptioned, len(samples)), *_size_notes(samples, small), *_folder_notes(data))
    _check_paths_are_distinct(samples, recall)
    _check_reference_counts(samples, sizing.most)
    return Dataset(tuple(samples), notes)


def previewed(paths: Sequence[str], sizing: Sizing) -> tuple[Reference, ...]:
    """The reference pictures of a preview, measured, or a DataError that names what cannot be used."""
    unreadable: list[str] = []
    found = tuple(_measured([Path(path) for path in paths], sizing, Recall(None), unreadable))
    if unreadable:
        what = f"references of previews cannot be used: {some(unreadable)}"
        raise DataError(what, where="sampling.references", fix="Check the paths.")
    return found


def _measured(paths: Iterable[Path], sizing: Sizing, recall: Recall, unreadable: list[str]) -> Iterator[Reference]:
    for path in paths:
        size = recall.size(path, unreadable)
        if size is not None:
            text_shape = sizing.text_shape(size) if sizing.text_shape else None
            yield Reference(path, size, sizing.shape(size), text_shape)


def _large_enough(path: Path, size: Shape, side_multiple: int, unreadable: list[str]) -> bool:
    if min(size.width, size.height) >= side_multiple:
        return True
    unreadable.append(f"{path} ({size} is smaller than one patch, {side_multiple} pixels)")
    return False


def _caption(entry: Entry, data: PlannedData, recall: Recall, uncaptioned: list[tuple[Path, str]]) -> str:
    """The picture's caption with the folder's trigger; a picture without text of its own is noted."""
    path, text = entry.path, entry.caption
    if text is None:
        text = "" if data.captions == "none" else recall.caption(path, data.captions)
    if not text and (data.captions != "none" or not data.trigger):
        uncaptioned.append((path, data.trigger))
    if "[trigger]" in text and not data.trigger:
        raise DataError(
            f"the caption of {path} holds [trigger], and no trigger word is named", fix="Say --trigger WORD."
        )
    return captions.with_trigger(text, data.trigger)


def _caption_notes(uncaptioned: Sequence[tuple[Path, str]], total: int) -> tuple[str, ...]:
    mute = [str(path) for path, trigger in uncaptioned if not trigger]
    if mute:
        raise DataError(
            f"{count(len(mute), 'picture')} of {total} without a caption: {some(mute)}",
            where="data",
            fix="Write a text file of the same name beside each, or name a trigger word (--trigger) to stand alone.",
        )
    if not uncaptioned:
        return ()
    return (f"{count(len(uncaptioned), 'picture')} of {total} without a caption; the trigger word stands alone there",)


def _size_notes(samples: Sequence[Sample], small: int) -> tuple[str, ...]:
    cut = sum(sample.fit.cropped > MUCH for sample in samples)
    found = (
        (small, "smaller than the training resolution, taught at its own size"),
        (cut, "cut by more than a quarter to fit a bucket"),
    )
    return tuple(f"{count(number, 'picture')} of {len(samples)} {what}" for number, what in found if number)


def _folder_notes(data: Sequence[PlannedData]) -> tuple[str, ...]:
    passed = folders.passed_over(data)
    return (f"not read, because the folder above holds pictures itself: {some(passed)}",) if passed else ()


def _check_paths_are_distinct(samples: Iterable[Sample], recall: Recall) -> None:
    resolve = lru_cache(maxsize=64)(os.path.realpath)
    counts = Counter(recall.real(str(sample.path), resolve) for sample in samples)
    twice = [path for path, count in counts.items() if count > 1]
    if twice:
        raise DataError(
            f"{count(len(twice), 'picture')} named more than once: {some(twice)}",
            where="data",
            fix="Name each folder, and each target of a list, once; use repeats to show pictures more often.",
        )


def _check_reference_counts(samples: Sequence[Sample], most: int) -> None:
    """A model takes so many references and no more; one that takes a single one takes it for all or for none."""
    over = [f"{sample.path} ({len(sample.references)})" for sample in samples if len(sample.references) > most]
    if over:
        takes = "no reference pictures" if not most else f"at most {count(most, 'reference picture')}"
        raise DataError(
            f"{count(len(over), 'picture')} with too many references: {some(over)}",
            where="data.references",
            why=f"this variant takes {takes}",
            fix="Leave some out, or choose a variant that takes more (`lorakit families`).",
        )
    counts = {len(sample.references) for sample in samples}
    if most == 1 and len(counts) > 1:
        without = [str(sample.path) for sample in samples if not sample.references]
        raise DataError(
            f"{count(len(without), 'picture')} without a reference beside others that have one: {some(without)}",
            where="data.references",
            why="this variant takes one reference, for every picture or for none",
            fix="Give each picture its reference, or leave all out.",
        )
