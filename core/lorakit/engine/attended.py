"""A run's events with what is asked of it in between: told, done, or waited for."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field

from lorakit.control import Control
from lorakit.engine.phases import StopAsked
from lorakit.engine.sharing import PROCESS
from lorakit.events import Event, RecoveryFinished, RunContinued, RunFinished, RunPaused, Verb


@dataclass
class Attended:
    """Work that yields events, watched by a control.

    `ready` says whether the work has come so far that a checkpoint or a preview can be made, `serve` makes it, `done`
    is how many updates there were. All of it happens while the work stands still between two of its events.
    """

    control: Control
    ready: Callable[[Verb], bool]
    serve: Callable[[Verb], Iterator[Event]]
    done: Callable[[], int]
    _open: dict[Verb, None] = field(default_factory=dict)

    def events(self, work: Generator[Event, None, None]) -> Generator[Event, None, None]:
        """The work's events and those of what is asked; StopAsked once that is to stop."""
        try:
            for event in _shared(work):
                yield event
                if not isinstance(event, (RunFinished, RecoveryFinished)):
                    yield from self._between()
        except StopAsked:
            yield from self.control.take()
            raise
        finally:
            work.close()

    def _between(self) -> Iterator[Event]:
        yield from self._taken()
        if not self.control.paused or self.control.stopping:
            return
        began = time.perf_counter()
        yield RunPaused(update=self.done())
        while self.control.paused and not self.control.stopping:
            self.control.wait()
            yield from self._taken()
        if self.control.stopping:
            raise StopAsked
        yield RunContinued(update=self.done(), seconds=time.perf_counter() - began)

    def _taken(self) -> Iterator[Event]:
        for asked in self.control.take():
            yield asked
            if not asked.refused and asked.what in ("sample", "save"):
                self._open[asked.what] = None
        for what in [one for one in self._open if self.ready(one)]:
            del self._open[what]
            yield from _shared(self.serve(what))


def _shared(work: Iterator[Event]) -> Iterator[Event]:
    """The work's events, each made while nobody changes what the whole process shares."""
    while True:
        with PROCESS.shared():
            event = next(work, None)
        if event is None:
            return
        yield event
