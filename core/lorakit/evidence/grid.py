"""The pictures that `lorakit grid` drew of a run, as its list tells of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lorakit.grid import FOLDER, known


@dataclass(frozen=True, slots=True)
class Cell:
    """One picture of the grid that is still there."""

    update: int
    strength: float
    guidance: float
    prompt: str
    path: Path


def cells(run: Path) -> tuple[Cell, ...]:
    """Every picture that the list names and that is there."""
    return tuple(
        Cell(one["update"], one["strength"], one["guidance"], one["prompt"], run / one["path"])
        for one in known(run)
        if (run / one["path"]).is_file()
    )


def sheets(run: Path) -> tuple[Path, ...]:
    """The pictures in the grid's folder that hold many; single ones lie in a folder of their own."""
    return tuple(sorted((run / FOLDER).glob("*.png")))
