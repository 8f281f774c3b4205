"""The report kept up to date while a run goes on: a reader of its events that can fail and never stops it."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import suppress
from pathlib import Path

from lorakit.events import (
    Alarm,
    CheckpointRemoved,
    CheckpointSaved,
    Event,
    PreviewDrawn,
    RunFinished,
    RunStopped,
    UpdateFinished,
    Validated,
    Warned,
)
from lorakit.history import REPORT, Reader

WITH_IT = (CheckpointSaved, CheckpointRemoved, Validated, PreviewDrawn, Alarm, Warned)
"""What belongs to a checkpoint and is told right after it."""


def reported(events: Iterator[Event], folder: Path) -> Generator[Event, None, None]:
    """The same events, with the report in `folder` written after every checkpoint and whenever they end.

    The first report that cannot be written is a warning; later ones are tried and not spoken of.
    """
    writer, due, worked = _Writer(folder), False, False
    try:
        for event in events:
            if (due and not isinstance(event, WITH_IT)) or isinstance(event, (RunFinished, RunStopped)):
                yield from writer.write()
                due = False
            due, worked = due or isinstance(event, CheckpointSaved), worked or isinstance(event, UpdateFinished)
            yield event
    except (Exception, GeneratorExit):  # Ctrl-C for the second time means at once
        _close(events)
        if worked:
            with suppress(Exception):
                list(writer.write())
        raise
    finally:
        _close(events)


class _Writer:
    """Writes the report, and complains once."""

    def __init__(self, folder: Path) -> None:
        self._history, self._file, self._told = Reader(folder), folder / REPORT, False

    def write(self) -> Iterator[Warned]:
        from lorakit.report.page import write

        try:
            write(self._history.read(), self._file)
        except Exception as error:  # a page never stops training, whatever is wrong with it
            if not self._told:
                self._told = True
                yield Warned(message=f"the report {self._file} could not be written: {error}")


def _close(events: Iterator[Event]) -> None:
    close = getattr(events, "close", None)
    if close:
        close()
