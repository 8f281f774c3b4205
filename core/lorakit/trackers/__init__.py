"""Trackers: readers of the event stream that show it elsewhere, each a few lines over its own library.

A tracker reads in a thread of its own: one that is slow or fails holds nobody up.
"""

from __future__ import annotations

import json
import queue
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from lorakit.errors import PluginError
from lorakit.events import (
    Alarm,
    Event,
    RecoveryFinished,
    RecoveryStopped,
    RunFinished,
    RunStarted,
    RunStopped,
    UpdateFinished,
    Validated,
    Warned,
)
from lorakit.history import events_of
from lorakit.plan import Plan
from lorakit.registry import Part, Shelves
from lorakit.secret import redacted

PATIENCE = 60.0
"""Seconds that a run waits at its end for a tracker to finish."""

MOST = 10_000
"""Events that wait for a slow tracker; it misses those beyond."""

LAST = (RunFinished, RunStopped, RecoveryFinished, RecoveryStopped)


class Tracker(Protocol):
    """What shows a run elsewhere."""

    def __call__(self, event: Event) -> None:
        """Show one event, if it is one that is shown."""

    def close(self) -> None:
        """Finish."""


Make = Callable[[Path, Plan], Tracker]
"""What a `Part` of the registry's trackers loads: a tracker of the run in a folder, by its plan."""


def chosen(names: Iterable[str], shelves: Shelves) -> list[Part]:
    """The trackers of these names; PluginError where what one needs is not installed."""
    found = [shelves.trackers.find(name, "trackers, or --track") for name in dict.fromkeys(names)]
    for part in found:
        lacking = [name for name in part.requires if find_spec(name) is None]
        if lacking:
            raise PluginError(
                f"the tracker '{part.name}' needs {', '.join(lacking)}", fix=f"Install it: {part.remedy}."
            )
    return found


def made(part: Part, plan: Plan) -> Tracker:
    """A tracker of the plan's run."""
    tracker: Tracker = part.resolve()(plan.folder, plan)
    return tracker


def tracked(events: Iterator[Event], make: Mapping[str, Callable[[], Tracker]]) -> Generator[Event, None, None]:
    """The same events, each given to every tracker; one that fails is a warning and is told nothing more."""
    readers = [_Reader(name, one) for name, one in make.items()]
    try:
        for event in events:
            for reader in readers:
                reader.give(event)
            if isinstance(event, LAST):  # the last word is the run's own
                yield from _ended(readers)
            yield event
            yield from _complaints(readers)
    finally:
        with suppress(Exception):
            for _ in _ended(readers):
                pass
        close = getattr(events, "close", None)
        if close:
            close()


def _ended(readers: list[_Reader]) -> Iterator[Warned]:
    for reader in readers:
        reader.end()
    yield from _complaints(readers)


def _complaints(readers: list[_Reader]) -> Iterator[Warned]:
    for reader in readers:
        while reader.complaints:
            yield Warned(message=f"the tracker '{reader.name}' {reader.complaints.pop(0)}")


class _Reader:
    """A tracker at work in its own thread; it is made there too, for that may take long."""

    def __init__(self, name: str, make: Callable[[], Tracker]) -> None:
        self.name, self._make = name, make
        self.complaints: list[str] = []
        self._waiting: queue.Queue[Event | None] = queue.Queue(MOST)
        self._failed = self._ended = self._late = False
        self._thread = threading.Thread(target=self._read, name=f"lorakit tracker {name}", daemon=True)
        self._thread.start()

    def give(self, event: Event) -> None:
        """Let the tracker read an event, when it comes to it."""
        try:
            if not self._failed:
                self._waiting.put_nowait(event)
        except queue.Full:
            if not self._late:
                self.complaints.append("is too slow, and misses events")
            self._late = True

    def end(self) -> None:
        """Let the tracker finish, within what patience there is."""
        if self._ended:
            return
        self._ended = True
        with suppress(queue.Full):
            self._waiting.put(None, timeout=PATIENCE)
        self._thread.join(PATIENCE)
        if self._thread.is_alive():
            self.complaints.append(f"did not finish within {PATIENCE:g} seconds; what it has not shown is lost")

    def _read(self) -> None:
        try:
            tracker = self._make()
            try:
                while (event := self._waiting.get()) is not None:
                    tracker(event)
            finally:
                tracker.close()
        except BaseException as error:  # some libraries leave the process where they find no account
            self._failed = True
            self.complaints.append(f"failed and is told nothing more: {type(error).__name__}: {error}")


# -- what trackers show ------------------------------------------------------------------------------------------

UPDATE = ("loss", "learning_rate", "grad_norm", "seconds", "memory", "epoch")
VALIDATION = ("loss", "train_loss", "gap", "trigger", "drift", "norm", "largest_norm")


def figures(event: Event) -> tuple[int, dict[str, float]]:
    """The update and the figures that an event tells, by name; none where it tells none."""
    if isinstance(event, UpdateFinished):
        return event.update, {f"train/{name}": getattr(event, name) for name in UPDATE}
    if isinstance(event, Validated):
        told = {f"validation/{name}": getattr(event, name) for name in VALIDATION}
        return event.update, {name: value for name, value in told.items() if value is not None}
    return 0, {}


def note(event: Event) -> str:
    """What an event says in words, without secrets; nothing where it says nothing."""
    if isinstance(event, Alarm):
        return redacted(f"{event.kind}: {event.message}")
    if isinstance(event, RunStopped):
        return redacted(f"stopped: {event.reason}")
    return redacted(event.message) if isinstance(event, Warned) else ""


def settings(plan: Plan) -> dict[str, Any]:
    """Every setting of the plan by its dotted name, without secrets."""
    return dict(_flat("", json.loads(redacted(json.dumps(plan.settings.model_dump(mode="json"))))))


def _flat(prefix: str, table: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in table.items():
        if isinstance(value, dict) and value:
            yield from _flat(f"{prefix}{name}.", value)
        else:
            yield f"{prefix}{name}", value


def identity(folder: Path, event: RunStarted) -> str:
    """A name of the run in a folder that stays when it is resumed, and that no other run has."""
    first = next((one for one in events_of(folder) if isinstance(one, RunStarted)), event)
    return f"{int(first.time * 1e6):x}"
