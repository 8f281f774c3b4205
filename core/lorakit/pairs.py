"""Which references belong to which picture: matched by name, or written in a list."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lorakit import jsontext, pictures
from lorakit.errors import DataError

NUMBERED = re.compile(r"^(.+)_(\d+)$")  # maya_2 is the second reference of maya
KEYS = ("target", "caption", "references")
ALIASES = {"file_name": "target", "image": "target", "text": "caption"}  # as other tools write them


@dataclass(frozen=True, slots=True)
class Entry:
    """A picture; its caption where a list gives one, else None; its references in order."""

    path: Path
    caption: str | None
    references: tuple[Path, ...]


def matched(entries: Sequence[Entry], folder: str | None, strays: list[Path] | None = None) -> Sequence[Entry]:
    """The entries with the references of `folder` that bear their names.

    One that bears no picture's name is an error, or is added to `strays`, where that is given.
    """
    if folder is None:
        return entries
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise DataError(f"there is no folder {root}", where="data.references", fix="Check the path.")
    stems = {entry.path.stem for entry in entries}
    groups: dict[str, list[tuple[int, Path]]] = {}
    alone: list[Path] = []
    for path in pictures.found(root):
        numbered = NUMBERED.match(path.stem)
        if path.stem in stems:
            groups.setdefault(path.stem, []).append((0, path))
        elif numbered and numbered.group(1) in stems:
            groups.setdefault(numbered.group(1), []).append((int(numbered.group(2)), path))
        else:
            alone.append(path)
    if strays is not None:
        strays += alone
    elif alone:
        shown = "; ".join(path.name for path in alone[:5]) + ("; ..." if len(alone) > 5 else "")
        raise DataError(
            f"{len(alone)} of the reference pictures in {root} belong to no picture: {shown}",
            where="data.references",
            fix="Name each like its picture: a.png, or a_1.png and a_2.png, for a.png.",
        )
    return [
        replace(entry, references=tuple(path for _, path in sorted(groups.get(entry.path.stem, ()))))
        for entry in entries
    ]


def listed(file: Path) -> Iterator[Entry]:
    """The entries of a JSON-lines file."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise DataError(f"there is no list {file}", where="data.list", fix="Check the path.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"the list {file} cannot be read", where="data.list", why=str(error)) from error
    lines = [(number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    if not lines:
        raise DataError(f"the list {file} is empty", where="data.list", fix="Write one picture a line.")
    for number, line in lines:
        yield _entry(file, number, line)


def _entry(file: Path, number: int, line: str) -> Entry:
    try:
        table: Any = jsontext.parse(line)
        if not isinstance(table, dict):
            raise ValueError("it is not a table")
        named: dict[str, Any] = {ALIASES.get(str(key), str(key)): value for key, value in table.items()}
        unknown = sorted(set(named) - set(KEYS))
        if unknown:
            raise ValueError(f"it has the unknown key {unknown[0]}; known are {', '.join(KEYS)}")
        target, caption, references = named["target"], named.get("caption"), named.get("references", [])
        if not isinstance(target, str) or not isinstance(caption, (str, type(None))):
            raise ValueError("target and caption are texts")
        if not isinstance(references, list) or not all(isinstance(one, str) for one in references):
            raise ValueError("references are a list of texts")
    except (ValueError, KeyError) as error:
        why = "it names no target" if isinstance(error, KeyError) else str(error)
        form = '{"target": "a.png", "caption": "...", "references": ["b.png"]}'
        raise DataError(
            f"line {number} of {file} is not right", where="data.list", why=why, fix=f"Write {form}."
        ) from None
    root = file.parent
    words = None if caption is None else " ".join(caption.split())
    return Entry(root / target, words, tuple(root / one for one in references))
