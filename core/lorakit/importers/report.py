"""What became of a foreign file: the settings that it means, and the fate of each of its keys."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from lorakit.config import Layer
from lorakit.words import count

Fate = Literal["carried", "changed", "dead", "refused", "unknown"]
FATES: Mapping[Fate, str] = {
    "carried": "means here what it means there",
    "changed": "means something else here, or is read otherwise",
    "dead": "does nothing in the trainer that it was written for",
    "refused": "has no counterpart in lorakit",
    "unknown": "is known neither to that trainer nor to lorakit",
}
"""What can become of a key, and what that says of all such keys."""
LONGEST = 60  # characters of a value that are shown


@dataclass(frozen=True, slots=True)
class Line:
    """The fate of one key: its value as shown, what it became here (`train.updates = 850`), and why.

    `line` is its line in the file, 0 where unknown; `said` is False for a default of the trainer that the file leaves
    unsaid; `file` names the file where it is not the one that was asked for.
    """

    key: str
    value: str
    fate: Fate
    to: str = ""
    why: str = ""
    line: int = 0
    said: bool = True
    file: str = ""

    def __str__(self) -> str:
        place = " ".join(filter(None, (self.file, f"line {self.line}" if self.line else "")))
        place = f"{place}: " if place else ""
        value = f" = {self.value}" if self.value else ""
        unsaid = "" if self.said else " (unsaid)"
        became = f" -> {self.to}" if self.to else ""
        because = f" ({self.why})" if self.why else ""
        return f"{place}{self.key}{value}{unsaid}{became}{because}"


@dataclass(frozen=True, slots=True)
class Imported:
    """A foreign file as lorakit's settings; `origins` says for a setting which line of which file it is from.

    `findings` are what must be known of the file as a whole: contradictions, and the reading that was chosen.
    """

    importer: str
    file: str
    table: Mapping[str, Any]
    origins: Mapping[str, str]
    lines: tuple[Line, ...]
    findings: tuple[str, ...] = ()

    def groups(self) -> Iterator[tuple[str, Fate | None, tuple[str, ...]]]:
        """The report: a heading, the fate that it is about, and its lines; last, about no fate, the findings."""
        for fate, means in FATES.items():
            lines = tuple(str(line) for line in self.lines if line.fate == fate)
            if lines:
                yield f"{count(len(lines), 'line')}, {fate}: {means}", fate, lines
        if self.findings:
            yield "to know", None, self.findings

    @property
    def title(self) -> str:
        """What was read, as what."""
        model = " ".join(str(self.table[one]) for one in ("family", "variant") if one in self.table)
        return f"{self.file}: {self.importer}, read as {model or 'no model that is known'}"

    def layers(self) -> list[Layer]:
        """One layer for each setting, so that errors and plans name its line; the first brings the notes."""
        from lorakit.config import leaves

        found = [Layer({}, self.file, notes=tuple(self.notes()))]
        for path, value in leaves(self.table):
            table: Any = value
            for part in reversed(path.split(".")):
                table = {part: table}
            found.append(Layer(table, self.origins.get(path, self.file)))
        return found

    def notes(self) -> Iterator[str]:
        """What a plan says of the file: the findings, and every key that does not mean here what it says there.

        Keys that do nothing are left out, but for those that were read as meant; keys of several tables that came to
        the same are told once.
        """
        yield from self.findings
        told: dict[Line, list[Line]] = {}
        for line in self.lines:
            if line.fate in ("changed", "refused", "unknown") or (line.fate == "dead" and line.to):
                told.setdefault(replace(line, key=re.sub(r"\[\d+\]", "[*]", line.key), line=0), []).append(line)
        for lines in told.values():
            yield _of_all(lines, self.file)


def _of_all(lines: Sequence[Line], file: str) -> str:
    """One sentence about lines that differ in nothing but the table that they are in."""
    first = lines[0]
    places = ", ".join(dict.fromkeys(str(line.line) for line in lines if line.line))
    where = f"{Path(first.file or file).name}{f' line {places}' if places else ''}"
    key = re.sub(r"\[\d+\]", "[*]", first.key) if len(lines) > 1 else first.key
    return f"{where}, {first.fate}: {replace(first, key=key, line=0, file='')}"


def shown(value: object) -> str:
    """A value on one line, cut where it is long."""
    text = value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False, default=str)
    text = " ".join(text.split())
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."
