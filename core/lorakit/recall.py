"""Sizes and captions of pictures, read once and recalled while the files are the same.

It is written for ten thousand pictures: os and strings where a Path would take three times as long.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from stat import S_ISLNK

from lorakit import captions, pictures
from lorakit.buckets import Shape
from lorakit.remembered import Notebook, Notes, Stamp, stamp

WORTH_IT = 500  # pictures from which on the database is opened; fewer are read again in less than 50 ms
SIZE, CAPTION = "size", "caption"  # kinds of notes


class Recall:
    """What is known of files from earlier; `notebook` None knows nothing and notes nothing."""

    def __init__(self, notebook: Notebook | None) -> None:
        self._notebook = notebook
        self._known: dict[tuple[str, str], Notes] = {}  # by kind and folder
        self._changed: set[tuple[str, str]] = set()
        self._links: set[str] = set()

    def size(self, path: Path, unreadable: list[str]) -> Shape | None:
        """The size of a picture as seen; None where it is none, with the reason added to `unreadable`."""
        if self._notebook is None:
            return pictures.size(path, unreadable)
        place, name, now = self._look(SIZE, str(path))
        known = self._known[place].get(name)
        if known is not None and known[0] == now:
            return _shape(known[1])
        found = pictures.size(path, unreadable)
        if found is not None and now is not None:
            self._note(place, name, now, str(found))
        return found

    def caption(self, path: Path, extension: str) -> str:
        """The text file's words in one line; empty where there is no file."""
        file = captions.file_of(path, extension)
        if self._notebook is None:
            return captions.words_of(file)
        place, name, now = self._look(CAPTION, file)
        known = self._known[place].get(name)
        if known is not None and known[0] == now:
            return str(known[1])
        found = captions.words_of(file)
        if now is not None:
            self._note(place, name, now, found)
        return found

    def real(self, path: str, resolve: Callable[[str], str]) -> str:
        """The path behind every link, of a picture that was measured; `resolve` looks up folders once."""
        linked = os.path.islink(path) if self._notebook is None else path in self._links  # noqa: PTH114
        if linked:
            return resolve(path)
        name = path.rpartition(os.sep)[2]
        return f"{resolve(path[: len(path) - len(name)])}{os.sep}{name}"

    def save(self) -> None:
        """Note what was read for the next time."""
        if self._notebook is not None:
            for kind, folder in self._changed:
                self._notebook.write(kind, _absolute(folder), self._known[kind, folder])
        self._known.clear()

    def _note(self, place: tuple[str, str], name: str, now: Stamp, value: str) -> None:
        self._known[place][name] = now, value
        self._changed.add(place)

    def _look(self, kind: str, path: str) -> tuple[tuple[str, str], str, Stamp | None]:
        """The file's kind and folder, its name, and its stamp; None where there is no file."""
        name = path.rpartition(os.sep)[2]
        place = kind, path[: len(path) - len(name)]
        if place not in self._known and self._notebook is not None:
            self._known[place] = self._notebook.read(kind, _absolute(place[1]))
        try:
            stat = os.lstat(path)
            if S_ISLNK(stat.st_mode):
                self._links.add(path)
                stat = os.stat(path)  # noqa: PTH116
        except (OSError, ValueError):  # absent, or no path at all: whoever reads it says so
            return place, name, None
        return place, name, stamp(stat)


def _absolute(folder: str) -> str:
    return str(Path(folder).absolute())


@lru_cache(maxsize=4096)
def _shape(text: str) -> Shape:
    width, height = text.split("x")
    return Shape(int(width), int(height))
