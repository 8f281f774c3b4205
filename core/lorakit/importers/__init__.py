"""Configurations of other trainers, read as lorakit's settings, with a report of every key.

An importer is a registered noun (`registry.importer`): a `Part` whose `load` names a function or class without
arguments that gives an `Importer`. Nothing that a file says is obeyed: YAML is read by the safe loader, scripts are
never run.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from lorakit.errors import ConfigError
from lorakit.family import Family
from lorakit.importers.document import Document, read
from lorakit.importers.names import Meant
from lorakit.importers.report import Imported
from lorakit.registry import Part, Shelf

__all__ = ["Document", "Imported", "Importer", "Meant", "imported", "importer_of", "read"]


class Importer(Protocol):
    """One trainer's configurations."""

    def recognizes(self, document: Document) -> bool:
        """Whether the file is one of this trainer's; asked of every importer, in no order."""

    def read(
        self,
        document: Document,
        families: Shelf[Family],
        *,
        dataset: Document | None = None,
        given: Meant | None = None,
    ) -> Imported:
        """The file as settings, with a line for each of its keys.

        `dataset` is a second file that describes pictures; `given` the family that somebody says it is for, which
        counts more than what the file says.
        """


def importer_of(document: Document, importers: Shelf[Part]) -> str | None:
    """The name of the importer that recognizes a file; None where none does, a ConfigError where several do."""
    found = [name for name, part in importers.items() if part.resolve()().recognizes(document)]
    if len(found) > 1:
        raise ConfigError(
            f"{document.path} may be read as {' or as '.join(found)}",
            fix=f"Say which: lorakit import --from {found[0]} FILE.",
        )
    return found[0] if found else None


def imported(
    path: Path,
    importers: Shelf[Part],
    families: Shelf[Family],
    *,
    by: str | None = None,
    dataset: Path | None = None,
    family: str | None = None,
    variant: str | None = None,
) -> Imported:
    """The file at `path` as its importer reads it, or as the importer called `by` does; `family` is else the file's."""
    document = read(path)
    name = by or importer_of(document, importers)
    if name is None:
        known = "; ".join(f"{name}: {part.summary}" for name, part in importers.items())
        raise ConfigError(
            f"{path} is no configuration that lorakit knows",
            why=f"known are {known}",
            fix="Say which with --from; a TOML of lorakit's own is given with --config.",
        )
    reader: Importer = importers.find(name, "--from").resolve()()
    given = _given(families, family, variant) if family else None
    return reader.read(document, families, dataset=read(dataset) if dataset else None, given=given)


def _given(families: Shelf[Family], family: str, variant: str | None) -> Meant:
    found = families.find(family, "--family")
    if variant is not None and variant not in found.variants:
        known = ", ".join(found.variants)
        raise ConfigError(f"{family} has no variant '{variant}'", where="--variant", fix=f"Known are {known}.")
    return Meant(found, variant or "", "--family")
