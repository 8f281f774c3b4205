"""A grid of pictures as one labelled sheet: a part for each prompt, checkpoints down, strength and guidance across."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from PIL import Image, ImageDraw, ImageFont

from lorakit.engine.preview import shortened
from lorakit.grid import Piece, table

SIDE = 224
"""Pixels of a picture's longer side on the sheet; the pieces keep their own."""
GAP, WIDER = 6, 18  # between pictures, and between strengths
LARGEST = 30_000
"""Pixels of a sheet's side; above, viewers refuse it, and its pictures are made smaller."""


def sheet(pieces: Sequence[Piece], picture: Callable[[Piece], Image.Image]) -> Image.Image:
    """The sheet; pictures are opened one at a time."""
    return _Sheet(pieces, picture(pieces[0]).size).drawn(picture)


class _Sheet:
    """The measures of a sheet."""

    def __init__(self, pieces: Sequence[Piece], size: tuple[int, int]) -> None:
        self.pieces = pieces
        self.columns = list(dict.fromkeys((one.strength, one.guidance) for one in pieces))
        self.prompts = {one.number: one.prompt for one in pieces}
        rows = len({one.update for one in pieces}) * len(self.prompts)
        side = min(SIDE, LARGEST // max(rows, len(self.columns)) - WIDER - 20)
        scale = max(side, 32) / max(size)
        self.width, self.height = (max(1, round(one * scale)) for one in size)
        self.smooth = scale < 1
        self.font, self.line = ImageFont.load_default(15), 24
        self.left = 110

    def x(self, column: int) -> int:
        """Where a column begins; strengths stand further apart than guidances."""
        groups = [strength for strength, _ in self.columns[: column + 1]]
        return self.left + column * (self.width + GAP) + WIDER * (len(dict.fromkeys(groups)) - 1)

    def drawn(self, picture: Callable[[Piece], Image.Image]) -> Image.Image:
        """The whole sheet."""
        updates = len({one.update for one in self.pieces})
        part = 3 * self.line + updates * (self.height + GAP) + GAP
        whole = Image.new("RGB", (self.x(len(self.columns) - 1) + self.width + GAP, part * len(self.prompts)), "white")
        pen = ImageDraw.Draw(whole)
        for place, number in enumerate(self.prompts):
            self._titles(pen, place * part, number, whole.width)
            top = place * part + 3 * self.line
            for update, row in table(self.pieces, number):
                pen.text((GAP, top + self.height // 2 - 8), f"update {update}", "black", self.font)
                for column, piece in enumerate(row):
                    whole.paste(self._sized(picture(piece)), (self.x(column), top))
                top += self.height + GAP
        return whole

    def _titles(self, pen: ImageDraw.ImageDraw, top: int, number: int, width: int) -> None:
        """The prompt, a strength over its columns, and the guidance over each."""
        seed = next(one.seed for one in self.pieces if one.number == number)
        told = shortened(self.prompts[number], pen, self.font, width - 2 * GAP - 100)
        pen.text((GAP, top + 4), f"{told}   (seed {seed})", "black", self.font)
        last = None
        for column, (strength, guidance) in enumerate(self.columns):
            if strength != last:
                pen.text((self.x(column), top + self.line), f"strength {strength:g}", "black", self.font)
                last = strength
            pen.text((self.x(column), top + 2 * self.line - 4), self._guidance(guidance), "#444444", self.font)

    def _guidance(self, value: float) -> str:
        return "no guidance" if value == 1 and len({one for _, one in self.columns}) == 1 else f"guidance {value:g}"

    def _sized(self, picture: Image.Image) -> Image.Image:
        how = Image.Resampling.LANCZOS if self.smooth else Image.Resampling.NEAREST
        return picture.resize((self.width, self.height), how)
