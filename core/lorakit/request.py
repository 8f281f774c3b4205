"""What somebody asked for, and where they said so."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from lorakit.rules import Asked
from lorakit.settings import Settings

Who = Literal["user", "preset"]


@dataclass(frozen=True, slots=True)
class Origin:
    """Who set a value, and where: a file, an option, a preset."""

    by: Who
    where: str


@dataclass(frozen=True, slots=True)
class Request:
    """The merged settings of a run, each leaf (`"train.batch_size"`) with its origin; a leaf without one is default.

    `notes` are what a person should know of how the settings were read.
    """

    settings: Settings
    origins: Mapping[str, Origin] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def value(self, path: str) -> object:
        """The setting at `path`, None where undecided."""
        found: object = self.settings
        for part in path.split("."):
            found = getattr(found, part)
        return found

    def asked(self, path: str) -> tuple[Asked, ...]:
        """Who asked for a value of the setting at `path`: nobody, the user or the preset."""
        value, origin = self.value(path), self.origins.get(path)
        if origin is None or value is None:
            return ()
        assert isinstance(value, (str, bool, int, float))
        return (Asked(value, origin.where, origin.by),)

    def where(self, path: str) -> str:
        """Where the setting at `path` was set; empty for a default."""
        origin = self.origins.get(path)
        return origin.where if origin else ""
