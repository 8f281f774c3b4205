"""Keys that mean one thing whatever else a file says: tables of them, and how each is told."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

from lorakit.importers.draft import Draft, Reader, flag, is_off, number, text


@dataclass(frozen=True, slots=True)
class Plain:
    """A key that sets one setting to its own value."""

    setting: str
    reader: Reader
    why: str = ""


@dataclass(frozen=True, slots=True)
class Off:
    """A key without a counterpart; nothing is lost where it is one of `usual`, or off where there are none."""

    means: str
    usual: tuple[Any, ...] = ()


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
            same = leaf.value is None or any(_same(leaf.value, one) for one in known.usual)
            if same or (not known.usual and is_off(leaf.value)):
                draft.tell(leaf.key, "carried", "as here" if known.usual else "off, as here")
            else:
                draft.tell(leaf.key, "refused", known.means)


def _same(value: Any, usual: Any) -> bool:
    """Whether two values are one, however they are written."""
    for reader in (number, flag, text):
        with suppress(ValueError):
            return bool(reader(value) == reader(usual))
    return False


def _known(key: str, table: Mapping[str, Told]) -> Told | None:
    """What the table has for a key, or for the nearest section above it that is said to be whole (`section.*`)."""
    if key in table:
        return table[key]
    parts = key.split(".")
    sections = (".".join([*parts[:end], "*"]) for end in range(len(parts), 0, -1))
    return next((table[section] for section in sections if section in table), None)
