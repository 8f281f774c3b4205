"""Run folders: made, read, and their events written down."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from lorakit.changes import refuse_other
from lorakit.engine import checkpoint
from lorakit.engine.cache import sync, write_atomically
from lorakit.errors import LorakitError, RunError
from lorakit.events import Event, RunFinished, Validated
from lorakit.history import EVENTS, PLAN, events_of, plan_of
from lorakit.plan import Plan

try:
    import fcntl
except ImportError:  # Windows, where nobody is kept out
    fcntl = None  # type: ignore[assignment]


def read_plan(folder: Path) -> Plan:
    """The plan of a run folder."""
    plan = plan_of(folder)
    if plan.folder.resolve() != folder.resolve():  # the run was moved: go on where it is now
        output = str(folder.resolve().parent)
        return plan.with_settings(output=output, name=folder.resolve().name)
    return plan


def refuse_if_taken(plan: Plan) -> None:
    """Raise RunError where the plan's folder holds a run with checkpoints, which is never touched."""
    folder = plan.folder
    if any(folder.glob("*.safetensors")) or checkpoint.saved(folder):
        chosen = plan.choices.get("name")
        raise RunError(
            f"there is a run in {folder} already",
            where=f"name, by {chosen.decided_by}" if chosen else "name",
            fix=f"Go on with it (`lorakit resume {folder}`), or choose another --name.",
        )


def claim(plan: Plan) -> Path:
    """The plan's folder, made and holding the plan."""
    folder = plan.folder
    if folder.is_symlink():
        raise RunError(
            f"the run folder {folder} is a link to {folder.resolve()}",
            where="name",
            why="a run is written below its output folder and nowhere else",
            fix=f"Name what it should be written to: --output {folder.resolve().parent}, or take the link away.",
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / EVENTS).unlink(missing_ok=True)
        write_plan(plan, folder)
        sync(folder.parent)
    except (OSError, LorakitError) as error:
        raise RunError(f"the run folder {folder} cannot be written", where="output", why=str(error)) from error
    return folder


def write_plan(plan: Plan, folder: Path) -> None:
    """Write the plan down, whole or not at all."""
    write_atomically(folder / PLAN, plan.to_json().encode())
    sync(folder)


def finished(folder: Path) -> int:
    """The updates after which the run in the folder came to its end; 0 where it did not."""
    return max((event.update for event in events_of(folder) if isinstance(event, RunFinished)), default=0)


def unfinished(plan: Plan) -> bool:
    """Whether the run in the plan's folder has not come to its end; RunError where it is another plan's."""
    begun = read_plan(plan.folder)
    refuse_other(plan, begun)
    return finished(plan.folder) != begun.settings.train.updates


def validated(folder: Path) -> set[int]:
    """The updates after which the run in the folder was measured."""
    return {event.update for event in events_of(folder) if isinstance(event, Validated)}


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold the run folder against other processes and threads; RunError where somebody holds it already.

    The lock file stays: taking it away would let one process hold the old file and another a new one.
    """
    place = folder.parent / ".cache" / "locks" / f"{folder.name}.lock"
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        file = place.open("w")
    except OSError as error:
        raise RunError(f"the run folder {folder} cannot be written", where="output", why=str(error)) from error
    with file:
        if fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise RunError(f"another process is at work in {folder}", fix="Wait for it, or stop it.") from None
        yield


def discard(folder: Path) -> None:
    """Take away what `claim` made, where nothing else came to stand beside it."""
    for name in (PLAN, EVENTS):
        (folder / name).unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        folder.rmdir()


def recorded(folder: Path, events: Generator[Event, None, None]) -> Iterator[Event]:
    """The same events, each written as a line of events.jsonl before anybody else sees it."""
    file = _journal(folder / EVENTS)
    try:
        for event in events:
            _append(file, event.to_json(), folder)
            yield event
    finally:
        events.close()
        with contextlib.suppress(OSError):  # what could not be written has been told
            file.close()


def _journal(path: Path) -> TextIO:
    try:
        _end_the_line(path)
        return path.open("a", encoding="utf-8")
    except OSError as error:
        raise _full(path, error) from error


def _append(file: TextIO, line: str, folder: Path) -> None:
    try:
        file.write(line + "\n")
        file.flush()
    except OSError as error:
        raise _full(folder / EVENTS, error) from error


def _full(path: Path, error: OSError) -> RunError:
    return RunError(f"{path} cannot be written", why=str(error), fix="Free some space; then `lorakit resume` goes on.")


def _end_the_line(file: Path) -> None:
    """A last line that was cut short must not swallow the next one."""
    text = file.read_bytes() if file.is_file() else b""
    if text and not text.endswith(b"\n"):
        with file.open("ab") as whole:
            whole.write(b"\n")
