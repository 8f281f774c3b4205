"""What every event is: frozen, with the time at which it happened, and JSON both ways."""

from __future__ import annotations

import json
import math
import time
from dataclasses import dataclass, field, fields
from typing import Any

from lorakit import jsontext
from lorakit.errors import NewerError
from lorakit.secret import redacted

VERSION = 1
"""Of the JSON form: raised where a field means something else or is gone, and not where an event or a field is new."""


@dataclass(frozen=True, kw_only=True)
class Event:
    """Something that happened; `time` is seconds since the epoch."""

    time: float = field(default_factory=time.time)

    def to_json(self) -> str:
        """One line of JSON without secrets: the kind under `event`, the form under `version`, a tuple as a list.

        A number that is not finite, which JSON cannot say, is the text "NaN", "Infinity" or "-Infinity".
        """
        told = {one.name: _finite(getattr(self, one.name)) for one in fields(self)}
        line = json.dumps({"event": type(self).__name__, "version": VERSION, **told}, allow_nan=False)
        numbers = all(isinstance(value, (int, float)) for value in told.values())
        return line if numbers else redacted(line)  # numbers hide nothing, and an update tells only numbers

    @staticmethod
    def from_json(line: str) -> Event:
        """The event that `to_json` wrote, equal to it.

        Fields that nobody knows are left out, and an event that nobody knows is an `Unknown`: a newer lorakit wrote it.
        A form that is newer is a NewerError, and what is no event at all a ValueError.
        """
        table = jsontext.table(line)
        name, version = table.pop("event", None), table.pop("version", None)
        if not isinstance(name, str) or not isinstance(version, int):
            raise ValueError("it is no event")
        if version > VERSION:
            raise NewerError(
                f"the event {name} has the form {version}, and this lorakit reads forms up to {VERSION}",
                fix="Update lorakit.",
            )
        if name not in (known := kinds()):
            return Unknown(line=line.strip(), time=_number(table.get("time", 0.0)))
        kind = known[name]
        types = {one.name: str(one.type) for one in fields(kind)}
        try:
            return kind(**{key: _read(value, types[key]) for key, value in table.items() if key in types})
        except TypeError as error:
            raise ValueError(f"it is no whole {name}: {error}") from error


@dataclass(frozen=True, kw_only=True)
class Unknown(Event):
    """An event that this lorakit has no name for, because a newer one wrote it; `line` is its JSON."""

    line: str

    def to_json(self) -> str:
        """The line, as it was."""
        return redacted(self.line)


def kinds() -> dict[str, type[Event]]:
    """Every event that has a name."""
    return {kind.__name__: kind for kind in Event.__subclasses__() if kind is not Unknown}


NUMBERS = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
"""How numbers are written that JSON has no form for."""


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    return [_finite(one) for one in value] if isinstance(value, tuple) else value


def _read(value: Any, kind: str) -> Any:
    """A value of a field of this type, frozen."""
    if isinstance(value, list):
        return tuple(_read(one, kind) for one in value)
    return _number(value) if "float" in kind else value


def _number(value: Any) -> Any:
    return NUMBERS.get(value, value) if isinstance(value, str) else value
