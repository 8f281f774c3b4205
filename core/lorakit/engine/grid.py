"""The grid of a run, drawn piece by piece with one model; what was drawn before is not drawn again."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from PIL import Image

from lorakit.control import Control
from lorakit.engine import lora_pairs, preview
from lorakit.engine.cache import write_atomically
from lorakit.engine.grid_sheet import sheet
from lorakit.engine.int8_products import told
from lorakit.engine.phases import Context, StopAsked
from lorakit.engine.run_folder import alone
from lorakit.engine.sample import context_of, within_memory
from lorakit.engine.studio import opened
from lorakit.errors import DataError
from lorakit.events import (
    DrawingStopped,
    Event,
    PhaseFinished,
    PhaseProgress,
    PhaseStarted,
    PictureDrawn,
    SheetDrawn,
    Warned,
)
from lorakit.grid import FOLDER, INDEX, PIECES, SHEET, Piece, Wanted, known, listed, pieces
from lorakit.lora_facts import Facts
from lorakit.plan import Plan
from lorakit.registry import Shelves


def draw(
    plan: Plan, shelves: Shelves, control: Control, run: Path, want: Wanted, facts: Mapping[int, Facts], note: str = ""
) -> Iterator[Event]:
    """Draw what is missing of the run's grid, and the sheet of all of it; `facts` are of the files by update."""
    if note:
        yield Warned(message=note)
    with alone(run):
        context = context_of(plan, shelves, control)
        found = pieces(plan, want, {update: _digest(file) for update, file in want.files.items()})
        grid = Grid(run, found)
        try:
            with within_memory(plan):
                yield from grid.missing(context, facts)
            yield from grid.finish(want.strengths)
        except StopAsked:
            yield DrawingStopped(drawn=len(found) - len(grid.lacking()), total=len(found), reason=control.reason)


class Grid:
    """The pieces that a grid shall have, and its folder."""

    def __init__(self, run: Path, found: Sequence[Piece]) -> None:
        self.run, self.pieces = run, found
        self._rows: dict[str, dict[str, Any]] = {
            row["path"]: row for row in known(run) if (run / row["path"]).is_file()
        }

    def lacking(self) -> list[Piece]:
        """The pieces that are still to be drawn."""
        return [one for one in self.pieces if self._rows.get(one.row()["path"], {}).get("key") != one.key]

    def missing(self, context: Context, facts: Mapping[int, Facts]) -> Iterator[Event]:
        """Draw them; the model is loaded only where there are any."""
        lacking = self.lacking()
        for one in self.pieces:
            if one not in lacking:
                yield self._drawn(one, kept=True)
        studio = (yield from opened(context, facts[lacking[0].update])) if lacking else None
        worn, began = lacking[0].update if lacking else 0, time.perf_counter()
        yield PhaseStarted(phase="draw", total=len(lacking))
        for done, one in enumerate(lacking):
            context.check()
            assert studio is not None
            if one.update != worn:
                studio.worn.put_on(lora_pairs.load(facts[one.update]))
                worn = one.update
            picture = studio.draw(one.number, one.strength, one.guidance)
            preview.save(picture, self._place(one))
            self._rows[one.row()["path"]] = one.row()
            write_atomically(self.run / FOLDER / INDEX, listed(list(self._rows.values())))
            yield self._drawn(one)
            yield from told(studio.base.products)
            yield PhaseProgress(phase="draw", done=done + 1, note=one.prompt)
        kept = len(self.pieces) - len(lacking)
        note = f"{len(lacking)} drawn, {kept} kept"
        yield PhaseFinished(phase="draw", seconds=time.perf_counter() - began, note=note)

    def finish(self, strengths: Sequence[float]) -> Iterator[Event]:
        """Lay everything out on one sheet."""
        place = self.run / FOLDER / SHEET
        preview.save(sheet(self.pieces, self._picture), place)
        yield SheetDrawn(path=str(place), strengths=tuple(strengths))

    def _place(self, piece: Piece) -> Path:
        return self.run / FOLDER / PIECES / piece.name

    def _picture(self, piece: Piece) -> Image.Image:
        place = self._place(piece)
        try:
            with Image.open(place) as picture:
                return picture.convert("RGB")
        except (OSError, ValueError, SyntaxError) as error:
            with suppress(OSError):
                place.unlink()
            raise DataError(f"{place} cannot be read", why=str(error), fix="It was removed; start again.") from error

    def _drawn(self, piece: Piece, kept: bool = False) -> PictureDrawn:
        return PictureDrawn(
            path=str(self._place(piece)),
            prompt=piece.prompt,
            strength=piece.strength,
            guidance=piece.guidance,
            seed=piece.seed,
            update=piece.update,
            kept=kept,
        )


def _digest(file: Path) -> str:
    with file.open("rb") as opened_file:
        return hashlib.file_digest(opened_file, "sha256").hexdigest()
