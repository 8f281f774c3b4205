"""The grid of a run, drawn piece by piece with one model in each process; what was drawn is not drawn again."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from lorakit import launched
from lorakit.control import Control
from lorakit.engine import lora_pairs, preview
from lorakit.engine.cache import write_atomically
from lorakit.engine.grid_sheet import sheet
from lorakit.engine.int8_products import told
from lorakit.engine.phases import Context, StopAsked, Work
from lorakit.engine.ranks import Ranks
from lorakit.engine.run_folder import alone
from lorakit.engine.sample import together
from lorakit.engine.studio import Studio, encoded, opened
from lorakit.errors import DataError, RunError
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

GOES_ON = "The same command goes on: what was drawn is kept."


def draw(
    plan: Plan, shelves: Shelves, control: Control, run: Path, want: Wanted, facts: Mapping[int, Facts], note: str = ""
) -> Iterator[Event]:
    """Draw what is missing of the run's grid, and the sheet of all of it; `facts` are of the files by update."""
    if note and not launched.number():
        yield Warned(message=note)
    found = pieces(plan, want, {update: _digest(file) for update, file in want.files.items()})
    try:
        yield from together(plan, shelves, control, GOES_ON, lambda context: _drawn(context, run, want, found, facts))
    except StopAsked:
        if not launched.number():
            drawn = len(found) - len(Grid(run, found).lacking())
            yield DrawingStopped(drawn=drawn, total=len(found), reason=control.reason)


def _drawn(
    context: Context, run: Path, want: Wanted, found: Sequence[Piece], facts: Mapping[int, Facts]
) -> Iterator[Event]:
    """The same in one process; the first of several holds the run, writes, and lays the sheet out."""
    with alone(run) if context.ranks.first else nullcontext():
        grid = Grid(run, found)
        yield from grid.missing(context, facts)
        if context.ranks.first:
            yield from grid.finish(want.strengths)


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
        """Draw them, dealt out among the processes; the model is loaded only where there are any."""
        lacking = self._named(context.ranks)
        for one in self.pieces:
            if one not in lacking:
                yield self._drawn(one, kept=True)
        artist = (yield from _ready(context, lacking, facts)) if lacking else None
        began = time.perf_counter()
        yield PhaseStarted(phase="draw", total=len(lacking))
        for done, (one, picture) in enumerate(context.ranks.made(lacking, partial(_painted, artist)), 1):
            write_atomically(self._place(one), picture)
            self._rows[one.row()["path"]] = one.row()
            write_atomically(self.run / FOLDER / INDEX, listed(list(self._rows.values())))
            yield self._drawn(one)
            yield from told(artist.studio.base.products if artist else None)
            yield PhaseProgress(phase="draw", done=done, note=one.prompt)
        kept = len(self.pieces) - len(lacking)
        note = f"{len(lacking)} drawn, {kept} kept"
        yield PhaseFinished(phase="draw", seconds=time.perf_counter() - began, note=note)

    def _named(self, ranks: Ranks) -> list[Piece]:
        """The pieces that are to be drawn, as the first process says, which holds the run."""
        known = {one.name: one for one in self.pieces}
        names = ranks.said([one.name for one in self.lacking()])
        if strange := [name for name in names if name not in known]:
            raise RunError(
                f"process {ranks.number} does not know {strange[0]}, which process 0 wants drawn",
                why=f"the files in {self.run} are others there",
                fix="Let all hosts see the same run folder and references.",
            )
        return [known[name] for name in names]

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


@dataclass
class _Artist:
    """A studio, and whose weights are worn in it."""

    studio: Studio
    facts: Mapping[int, Facts]
    worn: int

    def draw(self, piece: Piece) -> bytes:
        """The picture, as a PNG."""
        self.studio.context.check()
        if piece.update != self.worn:
            self.studio.worn.put_on(lora_pairs.load(self.facts[piece.update]))
            self.worn = piece.update
        return preview.encoded(self.studio.draw(piece.number, piece.strength, piece.guidance))


def _ready(context: Context, lacking: Sequence[Piece], facts: Mapping[int, Facts]) -> Work[_Artist | None]:
    """Whoever draws this process' share of the pieces; nobody, and no model, where it has none."""
    own = context.ranks.dealt(lacking)
    update = own[0].update if own else lacking[0].update
    pairs = lora_pairs.load(facts[update])
    told_of = yield from encoded(context)  # by all of them together
    return _Artist((yield from opened(context, told_of, pairs)), facts, update) if own else None


def _painted(artist: _Artist | None, piece: Piece) -> bytes:
    assert artist is not None
    return artist.draw(piece)


def _digest(file: Path) -> str:
    with file.open("rb") as opened_file:
        return hashlib.file_digest(opened_file, "sha256").hexdigest()
