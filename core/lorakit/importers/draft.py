"""Settings in the making: keys of a foreign file are taken one by one, and none is left without a fate."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from lorakit.config import Layer, build
from lorakit.errors import ConfigError
from lorakit.importers.leaf import Leaf
from lorakit.importers.report import Fate, Imported, Line, shown

Reader = Callable[[Any], Any]
"""A foreign value as ours, or a ValueError that says what it is not."""


class Draft:
    """What a file has come to so far; `leaves` in the file's order, each of which gets at least one line."""

    def __init__(self, importer: str, file: str, leaves: Iterable[Leaf]) -> None:
        self.importer, self.file = importer, file
        self.table: dict[str, Any] = {}
        self.findings: list[str] = []
        self._leaves = tuple(leaves)
        self._order = {leaf.key: place for place, leaf in enumerate(self._leaves)}
        self._here = {leaf.key: leaf for leaf in self._leaves if not leaf.shadowed}
        self._lines: list[Line] = []
        self._origins: dict[str, str] = {}

    # -- asking ----------------------------------------------------------------------------------------------

    def leaf(self, key: str) -> Leaf | None:
        """The key's leaf, None where the file does not say it."""
        return self._here.get(key)

    def has(self, key: str) -> bool:
        """Whether the file says the key, with a value."""
        leaf = self._here.get(key)
        return leaf is not None and leaf.value is not None

    def get(self, key: str, reader: Reader, default: Any) -> Any:
        """The key's value as `reader` has it; the default where it is unsaid or null.

        A value that cannot be read is told of as refused; from then on the key counts as unsaid.
        """
        leaf = self._here.get(key)
        if leaf is None or leaf.value is None:
            return default
        try:
            return reader(leaf.value)
        except ValueError as error:
            self.drop(key, "refused", str(error))
            return default

    def all(self) -> tuple[Leaf, ...]:
        """Every leaf that counts."""
        return tuple(self._here.values())

    def below(self, prefix: str) -> Iterator[Leaf]:
        """The leaves that no line is about yet and whose key begins with `prefix`."""
        told = {line.key for line in self._lines if line.said}
        yield from (leaf for leaf in self._here.values() if leaf.key.startswith(prefix) and leaf.key not in told)

    def setting(self, path: str) -> Any:
        """What a setting has come to, None where to nothing."""
        found: Any = self.table
        for part in path.split("."):
            found = found.get(part) if isinstance(found, dict) else None
        return found

    # -- telling ---------------------------------------------------------------------------------------------

    def tell(self, key: str, fate: Fate, why: str = "", to: str = "") -> None:
        """One line about a key that the file says; nothing where it does not."""
        leaf = self._here.get(key)
        if leaf is not None:
            self._lines.append(Line(key, shown(leaf.value), fate, to, why, leaf.line, file=leaf.file))

    def put(self, key: str, setting: str, value: Any, why: str = "", fate: Fate | None = None) -> bool:
        """Set a setting from a key that the file says, or from none (an empty key).

        Without a `fate` it is changed where there is a reason, and carried where there is none.

        A value that no setting can have is refused, with what lorakit says of it.
        """
        leaf = self._here.get(key)
        if key and leaf is None:
            return False
        objection = objection_to(setting, value)
        if objection:
            self.tell(key, "refused", objection)
            return False
        self._set(setting, value)
        if leaf is not None:
            file = leaf.file or self.file
            self._origins[setting] = f"{file} line {leaf.line}" if leaf.line else file
            self.tell(key, fate or ("changed" if why else "carried"), why, f"{setting} = {shown(value)}")
        return True

    def unsaid(self, key: str, setting: str, value: Any, why: str = "", fate: Fate = "carried") -> None:
        """Set a setting that nothing has set yet to what the trainer does where the file is silent."""
        if self.setting(setting) is None and not objection_to(setting, value):
            self._set(setting, value)
            self._origins[setting] = f"{self.file}, unsaid: {self.importer}'s default"
            instead = ", in place of what the file says" if key in self._order and not self.has(key) else ""
            because = f"{why or 'the default there'}{instead}"
            self._lines.append(Line(key, "", fate, f"{setting} = {shown(value)}", because, said=False))

    def drop(self, key: str, fate: Fate, why: str) -> None:
        """Tell of a key, which from then on counts as unsaid."""
        self.tell(key, fate, why)
        self._here.pop(key, None)

    def settle(self, key: str, setting: str, value: Any, why: str = "", fate: Fate | None = None) -> None:
        """`put` where the file says the key, `unsaid` where it does not."""
        if self.has(key):
            self.put(key, setting, value, why, fate)
        else:
            self.tell(key, "carried", "null: as unsaid")
            self.unsaid(key, setting, value, why, fate or "carried")

    def remark(self, key: str, why: str, fate: Fate = "changed") -> None:
        """A line about something that the file leaves unsaid and lorakit does otherwise."""
        self._lines.append(Line(key, "", fate, "", why, said=False))

    def same(self, key: str, setting: str, reader: Reader, why: str = "", fate: Fate | None = None) -> None:
        """Carry a key over as it is."""
        if self.has(key):
            value = self.get(key, reader, None)
            self.put(key, setting, value, why, fate or "carried")
        else:
            self.tell(key, "carried", "null: as unsaid")

    def finish(self) -> Imported:
        """Everything, in the file's order; a key that nobody has told about is unknown."""
        for leaf in self._leaves:
            if leaf.shadowed:
                why = "said again further down, where the last one counts"
                self._lines.append(Line(leaf.key, shown(leaf.value), "dead", "", why, leaf.line, file=leaf.file))
        told = {line.key for line in self._lines if line.said}
        for key in self._here:
            if key not in told:
                self.tell(key, "unknown", f"nothing in {self.importer} that lorakit knows of reads it")
        last = len(self._order)
        lines = sorted(
            dict.fromkeys(self._lines), key=lambda one: (self._order[one.key], one.line) if one.said else (last, 0)
        )
        return Imported(
            self.importer, self.file, self.table, self._origins, tuple(lines), tuple(dict.fromkeys(self.findings))
        )

    def _set(self, setting: str, value: Any) -> None:
        inner = self.table
        *parents, leaf = setting.split(".")
        for parent in parents:
            inner = inner.setdefault(parent, {})
        inner[leaf] = value


def objection_to(setting: str, value: Any) -> str:
    """What the settings say of a value, empty where they take it."""
    table: Any = value
    for part in reversed(setting.split(".")):
        table = {part: table}
    try:
        build([Layer({"family": "any", **table}, "")])
    except ConfigError as error:
        return f"lorakit takes no such value: {error.what}"
    return ""


# -- readers -------------------------------------------------------------------------------------------------


def text(value: Any) -> str:
    """A word or words; numbers are taken as they are written."""
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise ValueError(f"{shown(value)} is not a text")
    return str(value).encode("utf-8", "replace").decode("utf-8")


def number(value: Any) -> float:
    """A finite number, also one that is written as text."""
    try:
        if isinstance(value, bool) or not isinstance(value, (str, int, float)):
            raise ValueError
        found = float(value)
        if not math.isfinite(found):
            raise ValueError
    except (ValueError, OverflowError):
        raise ValueError(f"{shown(value)} is not a number") from None
    return found


def whole(value: Any) -> int:
    """A whole number, also one that is written as text or as 1e3."""
    found = number(value)
    if found != int(found) or abs(found) > 2**53:
        raise ValueError(f"{shown(value)} is not a whole number")
    return int(found)


def positive(value: Any) -> int:
    """A whole number of at least 1."""
    found = whole(value)
    if found < 1:
        raise ValueError(f"{shown(value)} is not at least 1")
    return found


def flag(value: Any) -> bool:
    """True or false, also as a command line or a shell writes them."""
    known: Mapping[str, bool] = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
    found = known.get(str(value).strip().lower())
    if found is None:
        raise ValueError(f"{shown(value)} is neither true nor false")
    return found


def texts(value: Any) -> list[str]:
    """A list of texts, or one text as a list."""
    return [text(one) for one in value] if isinstance(value, list) else [text(value)]


def is_off(value: Any) -> bool:
    """Whether a value switches its key off: null, false, 0, an empty text, list or table."""
    return not value or (isinstance(value, str) and value.strip().lower() in ("false", "0", "no", "none", "0.0"))
