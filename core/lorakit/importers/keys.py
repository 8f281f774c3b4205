"""Keys that mean one thing whatever else a file says: tables of them, and how each is told."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from lorakit.importers.draft import Draft, Reader, is_off


@dataclass(frozen=True, slots=True)
class Plain:
    """A key that sets one setting to its own value."""

    setting: str
    reader: Reader
    why: str = ""


@dataclass(frozen=True, slots=True)
class Off:
    """A key that lorakit has no counterpart for: nothing is lost where it is off, or one of `also`."""

    means: str
    also: tuple[Any, ...] = ()


@dataclass(frozen=True, slots=True)
class Fixed:
    """A key whose fate does not depend on its value."""

    fate: Literal["carried", "dead", "refused"]
    why: str


Told = Plain | Off | Fixed


def tell_all(draft: Draft, table: Mapping[str, Told], prefix: str = "") -> None:
    """Tell of every key below `prefix` that the table knows, with list places written as `[*]`."""
    for leaf in list(draft.below(prefix)):
        known = _known(re.sub(r"\[\d+\]", "[*]", leaf.key.removeprefix(prefix)), table)
        if isinstance(known, Plain):
            draft.same(leaf.key, known.setting, known.reader, known.why)
        elif isinstance(known, Fixed):
            draft.tell(leaf.key, known.fate, known.why)
        elif isinstance(known, Off):
            off = is_off(leaf.value) or leaf.value in known.also or str(leaf.value) in map(str, known.also)
            draft.tell(leaf.key, "carried" if off else "refused", "off, as here" if off else known.means)


def _known(key: str, table: Mapping[str, Told]) -> Told | None:
    """What the table has for a key, or for the nearest section above it that is said to be whole (`section.*`)."""
    if key in table:
        return table[key]
    parts = key.split(".")
    sections = (".".join([*parts[:end], "*"]) for end in range(len(parts), 0, -1))
    return next((table[section] for section in sections if section in table), None)
