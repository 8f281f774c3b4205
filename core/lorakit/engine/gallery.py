"""The previews of a run: those that are due after an update, and those that somebody asks for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from lorakit.alarms import Watch
from lorakit.engine import preview
from lorakit.engine.cache import write_atomically
from lorakit.engine.loop import Trainer
from lorakit.engine.phases import Context
from lorakit.events import Event, PreviewDrawn, SheetDrawn
from lorakit.order import is_due


@dataclass
class Gallery:
    """Draws every prompt with the adapter as it is, into the run's folder."""

    context: Context
    trainer: Trainer
    painter: preview.Painter
    watch: Watch
    _drawn: set[Path] = field(default_factory=set)
    """What was drawn after the newest update, and need not be drawn again."""
    _update: int = -1

    def due(self, missing: bool = False) -> Iterator[Event]:
        """The previews that are due after the last update, or those of them that are not drawn yet."""
        if self.is_due(self.trainer.updates):
            numbers, ranks = range(len(self.context.plan.settings.sampling.prompts)), self.context.ranks
            wanted = [one for one in numbers if not (self._known(one) or (missing and self._path(one).is_file()))]
            self.context.check()
            for number, picture in ranks.made(ranks.said(wanted), self._drawing):
                yield from self._shown(number, picture)
                self.context.check()

    def sheet(self) -> Iterator[Event]:
        """Every prompt (rows) at every strength that is asked for (columns), labelled, on one sheet."""
        sampling = self.context.plan.settings.sampling
        prompts, strengths = sampling.prompts, sampling.strengths
        cells = [(number, strength) for number in range(len(prompts)) for strength in strengths]
        drawn = [preview.decoded(one) for _, one in self.context.ranks.made(cells, lambda cell: self._drawing(*cell))]
        if drawn:  # in the first process
            rows = [drawn[begin : begin + len(strengths)] for begin in range(0, len(drawn), len(strengths))]
            path = self.context.plan.folder / "samples" / "strengths.png"
            preview.save(preview.contact_sheet(rows, prompts, [f"strength {one:g}" for one in strengths]), path)
            yield SheetDrawn(path=str(path), strengths=strengths)

    def is_due(self, update: int) -> bool:
        """Whether previews are drawn after an update."""
        settings, sums = self.context.plan.settings, self.context.plan.arithmetic
        every, last = settings.sampling.every, update == settings.train.updates
        return bool(every) and (last or is_due(update, every, sums, settings.train.accumulation))

    def now(self) -> Iterator[Event]:
        """Every prompt as the model draws it now; what was drawn since the last update is told of again."""
        for number, prompt in enumerate(self.context.plan.settings.sampling.prompts):
            if self._known(number):
                yield PreviewDrawn(update=self.trainer.updates, path=str(self._path(number)), prompt=prompt)
            else:
                self.context.check()
                yield from self._shown(number, self._drawing(number))

    def _drawing(self, number: int, strength: float = 1.0) -> bytes:
        with self.trainer.adapter.at(strength, self.trainer.average):
            return preview.encoded(self.painter.draw(number, self.context.device, self.context.source.dtype))

    def _shown(self, number: int, picture: bytes) -> Iterator[Event]:
        path, prompt = self._path(number), self.context.plan.settings.sampling.prompts[number]
        write_atomically(path, picture)
        self._drawn.add(path)
        drawn = PreviewDrawn(update=self.trainer.updates, path=str(path), prompt=prompt)
        yield drawn
        yield from self.watch.picture(drawn)

    def _path(self, number: int) -> Path:
        return self.context.plan.folder / "samples" / f"{self.trainer.updates:06d}-{number}.png"

    def _known(self, number: int) -> bool:
        if self._update != self.trainer.updates:
            self._drawn, self._update = set(), self.trainer.updates
        return self._path(number) in self._drawn and self._path(number).is_file()
