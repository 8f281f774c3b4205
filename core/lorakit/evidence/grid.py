"""The pictures that `lorakit grid` drew of a run, as its list tells of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorakit import jsontext

FOLDER, INDEX = "grid", "index.json"


@dataclass(frozen=True, slots=True)
class Cell:
    """One picture of the grid."""

    update: int
    strength: float
    guidance: float
    prompt: str
    seed: int
    path: Path


def cells(run: Path) -> tuple[Cell, ...]:
    """Every picture that the list names and that is there; none where there is no list, or none that can be read."""
    try:
        told = jsontext.parse((run / FOLDER / INDEX).read_bytes())
        return tuple(_cells(run, told)) if isinstance(told, list) else ()
    except (OSError, ValueError, KeyError, TypeError):
        return ()


def sheets(run: Path) -> tuple[Path, ...]:
    """The pictures in the grid's folder that hold many: those that its list does not name."""
    single = {one.path.name for one in cells(run)}
    return tuple(path for path in sorted((run / FOLDER).glob("*.png")) if path.name not in single)


def _cells(run: Path, told: list[Any]) -> Iterator[Cell]:
    for one in told:
        named = Path(str(one["path"]))
        places = (run / FOLDER / named, run / named, run / FOLDER / named.name)  # the run may have been moved
        found = next((path for path in places if path.is_file()), None)
        if found is not None:
            yield Cell(
                int(one["update"]),
                float(one["strength"]),
                float(one["guidance"]),
                str(one["prompt"]),
                int(one["seed"]),
                found,
            )
