"""What a [[data]] table names: the pictures of a folder, of its sub-folders, or of a list."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lorakit import pairs, pictures
from lorakit.errors import DataError
from lorakit.pairs import Entry

if TYPE_CHECKING:  # plugins that bring a family are loaded for `lorakit --help`, which has no use for settings
    from lorakit.planned import PlannedData

REPEATS = re.compile(r"^(\d+)_(.+)$")  # kohya's convention: 40_maya is shown 40 times an epoch


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder of pictures or a list of them, how often each is shown, and the table that names it."""

    path: Path
    repeats: int
    data: PlannedData


def entries(data: PlannedData, strays: list[Path] | None = None) -> Iterator[tuple[Folder, Entry]]:
    """Every picture of a [[data]] table with the folder or list it is of; references may be for any of its folders.

    A reference that belongs to no picture is an error, or is added to `strays`, where that is given.
    """
    if data.list is not None:
        file = Path(data.list).expanduser()
        yield from ((Folder(file, data.repeats or 1, data), entry) for entry in pairs.listed(file))
        return
    assert data.folder is not None
    found = [(one, path) for one in _folders(data, Path(data.folder).expanduser()) for path in pictures.found(one.path)]
    entries = pairs.matched([Entry(path, None, ()) for _, path in found], data.references, strays)
    yield from zip((folder for folder, _ in found), entries, strict=True)


def _folders(data: PlannedData, root: Path) -> Iterator[Folder]:
    """The folder itself, or its sub-folders that are named `40_name` where it holds no pictures of its own."""
    if not root.exists():
        raise DataError(f"there is no folder {root}", where="data.folder", fix="Check the path.")
    if not root.is_dir():
        raise DataError(f"{root} is a file, not a folder", where="data.folder", fix="Name the folder it is in.")
    if pictures.any_in(root):
        yield Folder(root, _repeats(root, data), data)
        return
    inner = [path for path in _named_like_repeats(root) if pictures.any_in(path)]
    if not inner:
        raise DataError(
            f"{root} holds no pictures",
            where="data.folder",
            fix=f"Pictures end in {', '.join(pictures.SUFFIXES)}; sub-folders count when named like 40_name.",
        )
    for path in inner:
        yield Folder(path, _repeats(path, data), data)


def _named_like_repeats(root: Path) -> list[Path]:
    """The sub-folders named like `40_name`, in order."""
    with os.scandir(root) as entries:
        return sorted(root / entry.name for entry in entries if REPEATS.match(entry.name) and entry.is_dir())


def _repeats(folder: Path, data: PlannedData) -> int:
    named = REPEATS.match(folder.resolve().name)
    if data.repeats is not None:
        return data.repeats
    if named and not int(named.group(1)):
        raise DataError(f"{folder} is shown 0 times, by its name", fix="Rename it, set data.repeats, or leave it out.")
    return int(named.group(1)) if named else 1


def passed_over(data: Sequence[PlannedData]) -> list[str]:
    """Sub-folders that look meant and are not read, because the folder holds pictures of its own."""
    roots = [Path(entry.folder).expanduser() for entry in data if entry.folder is not None]
    return [
        str(inner)
        for root in roots
        if pictures.any_in(root)
        for inner in _named_like_repeats(root)
        if inner not in roots
    ]
