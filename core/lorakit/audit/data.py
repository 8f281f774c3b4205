"""What is audited: pictures with their texts and references as they lie there, whatever is wrong with them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lorakit import captions, folders
from lorakit.errors import DataError
from lorakit.planned import PlannedData


@dataclass(frozen=True, slots=True)
class Told:
    """A picture as its folder or list tells of it.

    `text` is its own text, None where there is none or it is not asked for; `caption` what is taught, and `illegible`
    why the text cannot be read.
    """

    path: str
    table: PlannedData
    repeats: int
    text: str | None
    caption: str
    illegible: str = ""
    references: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Data:
    """Everything that the [[data]] tables name; `strays` are references that belong to no picture."""

    pictures: tuple[Told, ...]
    strays: tuple[str, ...]
    passed_over: tuple[str, ...]

    @property
    def references(self) -> list[str]:
        """Every reference of a picture, once."""
        return list(dict.fromkeys(path for one in self.pictures for path in one.references))


def gather(tables: Sequence[PlannedData]) -> Data:
    """What the tables name; a DataError where a folder or list is not there or cannot be read."""
    strays: list[Path] = []
    found = []
    for table in tables:
        for folder, entry in folders.entries(table, strays):
            text, why = _text(entry.path, entry.caption, table)
            caption = captions.with_trigger(text or "", table.trigger)
            seen = tuple(map(str, entry.references))
            found.append(Told(str(entry.path), table, folder.repeats, text, caption, why, seen))
    return Data(tuple(found), tuple(map(str, strays)), tuple(folders.passed_over(tables)))


def _text(path: Path, listed: str | None, table: PlannedData) -> tuple[str | None, str]:
    if listed is not None:
        return listed, ""
    if table.captions == "none":
        return None, ""
    file = captions.file_of(path, table.captions)
    try:
        text = captions.words_of(file)
    except DataError as error:
        return None, error.why
    return (text if text or Path(file).exists() else None), ""
