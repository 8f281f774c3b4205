"""What a run did, read from its folder: the plan, the events, the files. No torch."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import TypeVar

from lorakit.errors import RunError
from lorakit.events import (
    Event,
    PreviewDrawn,
    RunFinished,
    SheetDrawn,
    UpdateFinished,
    Validated,
)
from lorakit.plan import Plan
from lorakit.update_table import UpdateTable

Kind = TypeVar("Kind", bound=Event)

PLAN, EVENTS, REPORT = "plan.json", "events.jsonl", "report.html"
CHECKPOINT = re.compile(r"^update-(\d{1,18})$")
FACTS, STATE = "state.json", "state.safetensors"
"""Names in a checkpoint's folder beside the loadable file: without the first it is not whole, the second is no LoRA."""


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """A run as its folder tells it; an update that was done twice, before and after a stop, counts as it was last.

    `events` are all of them, oldest first, but for updates that another update follows at once.
    """

    folder: Path
    plan: Plan
    updates: UpdateTable
    validations: tuple[Validated, ...]
    previews: tuple[PreviewDrawn, ...]
    sheet: Path | None = None
    end: RunFinished | None = None
    events: tuple[Event, ...] = ()

    @property
    def finished(self) -> bool:
        """Whether the run came to the end of its plan."""
        return self.end is not None and self.end.update == self.plan.settings.train.updates

    @property
    def file(self) -> Path:
        """The LoRA."""
        return self.folder / f"{self.plan.settings.name}.safetensors"

    @property
    def seconds_per_update(self) -> float | None:
        """The median."""
        return median(self.updates.column("seconds")) if self.updates else None

    @property
    def memory(self) -> int:
        """The peak in bytes."""
        return max(self.updates.column("memory"), default=0)

    def told(self, kind: type[Kind]) -> tuple[Kind, ...]:
        """The events of a kind, oldest first."""
        return tuple(event for event in self.events if isinstance(event, kind))

    def checkpoints(self) -> dict[int, Path]:
        """The loadable file of each checkpoint that is there, by update; at the end of the run, the LoRA itself."""
        found: dict[int, Path] = {}
        for place in (self.folder / "checkpoints").glob(f"update-*/{FACTS}"):
            named = CHECKPOINT.match(place.parent.name)
            files = sorted(path for path in place.parent.glob("*.safetensors") if path.name != STATE)
            if named and files:
                found[int(named[1])] = files[0]
        if self.end is not None and self.file.is_file():
            found[self.end.update] = self.file
        return dict(sorted(found.items()))

    def last_previews(self) -> dict[str, Path]:
        """The newest picture of each prompt that is still there."""
        return {one.prompt: path for one in self.previews if (path := self.place(one.path)).is_file()}

    def place(self, told: str) -> Path:
        """Where a file that an event names lies now: the run's folder may have been moved since."""
        path = Path(told)
        return self.folder / path.parent.name / path.name


def plan_of(folder: Path) -> Plan:
    """The plan of a run folder, as it was written; RunError where there is none, or none that can be read."""
    file = folder / PLAN
    if not file.is_file():
        raise RunError(f"{folder} is not a run: it has no {PLAN}", fix="Name a folder that `lorakit train` made.")
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RunError(f"{file} cannot be read", why=str(error), fix="It must be as lorakit wrote it.") from error
    return Plan.from_json(text, str(file))


def read(folder: Path) -> History:
    """The history of the run in `folder`; RunError where there is none, or none that can be read."""
    return Reader(folder).read()


class Reader:
    """Reads the history of a run again and again while it is made: each time only what was written since."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._at = folder, 0
        self._updates, self._events = UpdateTable(), list[Event]()
        self._last: UpdateFinished | None = None

    def read(self) -> History:
        """The history as it stands now; RunError where there is none, or none that can be read."""
        plan, file = plan_of(self._folder), self._folder / EVENTS
        try:
            self._go_on(file)
        except OSError as error:
            raise RunError(f"{file} cannot be read", why=str(error), fix="Check its permissions.") from error
        events = (*self._events, *([self._last] if self._last else []))
        sheets = [event for event in events if isinstance(event, SheetDrawn)]
        ends = [event for event in events if isinstance(event, RunFinished)]
        found = History(
            folder=self._folder,
            plan=plan,
            updates=self._updates,
            validations=tuple({one.update: one for one in events if isinstance(one, Validated)}.values()),
            previews=tuple(event for event in events if isinstance(event, PreviewDrawn)),
            end=ends[-1] if ends else None,
            events=events,
        )
        sheet = found.place(sheets[-1].path) if sheets else None
        return replace(found, sheet=sheet) if sheet and sheet.is_file() else found

    def _go_on(self, file: Path) -> None:
        for event, end in _told(file, self._at):
            self._at = end
            if isinstance(event, UpdateFinished):
                with suppress(ValueError):  # it says that it is an update, and is none
                    self._updates.add(event)
                    self._last = event
            else:
                self._events += [*([self._last] if self._last else []), event]
                self._last = None


def smoothed(values: Sequence[float], share: float = 0.1) -> list[float]:
    """A running mean in which each value counts `share`, the first ones more."""
    found: list[float] = []
    for number, value in enumerate(values, 1):
        weight = max(share, 1 / number)
        found.append(value if not found else found[-1] + weight * (value - found[-1]))
    return found


def events_of(folder: Path) -> Iterator[Event]:
    """The events of a run folder, oldest first; lines cut short are left out, a newer form is a NewerError."""
    for event, _ in _told(folder / EVENTS, 0):
        yield event


def _told(path: Path, start: int) -> Iterator[tuple[Event, int]]:
    """Each event of the file from there on, and where in the file it ends."""
    if not path.is_file():
        return
    with path.open("rb") as file:
        file.seek(start)
        for line in file:
            start += len(line)
            try:
                yield Event.from_json(line.decode("utf-8", errors="replace")), start
            except (ValueError, KeyError, TypeError):
                continue
