"""How another process speaks to a run: small files in the run's folder, each written whole or not at all.

The run says in `run.json` that it is under way, and removes that at its end. Whoever asks puts an `.ask` there and
waits for the `.answer`. Nothing but that folder is read or written, and no clock of two machines is compared, so this
works wherever both can rename a file there.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import socket
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from json import dumps
from pathlib import Path
from typing import Any, Literal

import psutil

from lorakit import jsontext
from lorakit.control import Control
from lorakit.errors import RunError, UnansweredError
from lorakit.events import VERBS

FOLDER, RUN = ".control", "run.json"
ASK = re.compile(r"[0-9a-f]{32}\.ask")
LARGEST = 4096
"""Bytes of a message; more is not read."""

LOOK = 0.2
"""Seconds between two looks into the folder."""

GRACE = 2.0
"""Seconds in which a run must answer whose process seems to be gone: it may live in another container."""

State = Literal["running", "paused", "stopping"]


@dataclass(frozen=True, slots=True)
class Answer:
    """What a run under way says to what was asked: why it refuses, or nothing, and how it stands then."""

    refused: str
    state: State
    process: int
    host: str


# -- in the run --------------------------------------------------------------------------------------------------


@contextmanager
def reachable(run: Path, control: Control) -> Iterator[str]:
    """For a while, what is asked of the run in this folder reaches its control; why it cannot, or nothing.

    For whoever holds the run alone: what a killed process left there is removed, and never obeyed.
    """
    folder = run / FOLDER
    try:
        _safe(folder)
        folder.mkdir(exist_ok=True)
        for left in folder.iterdir():
            left.unlink()
        about = {"process": os.getpid(), "began": psutil.Process().create_time(), "host": socket.gethostname()}
        _write(folder / RUN, {**about, "token": secrets.token_hex(8)})
    except (OSError, RunError) as error:
        yield f"`lorakit ctl` cannot reach this run: {error}"
        return
    over = threading.Event()
    listener = threading.Thread(
        target=_listen, args=(folder, control, over), name=f"lorakit ctl {run.name}", daemon=True
    )
    listener.start()
    try:
        yield ""
    finally:
        over.set()
        listener.join()
        _answer_all(folder, None, {})
        _remove(folder / RUN)
        _tidy(folder)


def _listen(folder: Path, control: Control, over: threading.Event) -> None:
    given: dict[str, Answer] = {}
    while not over.wait(LOOK):
        _answer_all(folder, control, given)


def _answer_all(folder: Path, control: Control | None, given: dict[str, Answer]) -> None:
    """Answer every question in the folder, the oldest first, and each once.

    What cannot be read or written now is left for the next look; `given` are the answers that could not be written.
    """
    with contextlib.suppress(OSError):
        asks = [path for path in folder.iterdir() if ASK.fullmatch(path.name)]
        for path in sorted(asks, key=lambda one: (one.lstat().st_mtime_ns, one.name)):
            with contextlib.suppress(OSError):
                if path.name not in given:
                    given[path.name] = _answer(_read(path), control)
                _write(path.with_suffix(".answer"), asdict(given[path.name]))
                path.unlink()
                del given[path.name]


def _answer(asked: dict[str, Any], control: Control | None) -> Answer:
    what, by = asked.get("what"), str(asked.get("by", ""))[:200]
    refused = "the run has come to its end"
    if control is not None:
        known = next((verb for verb in VERBS if verb == what), None)
        refused = "" if what == "status" else control.ask(known, by) if known else f"it knows nothing of '{what}'"
    state: State = "stopping" if control is None or control.stopping else "paused" if control.paused else "running"
    return Answer(refused, state, os.getpid(), socket.gethostname())


# -- in another process ------------------------------------------------------------------------------------------


def ask(run: Path, what: str, by: str, timeout: float) -> Answer:
    """What the run in this folder answers within `timeout` seconds, to a verb of `VERBS` or to `status`.

    RunError where none is under way there, UnansweredError where it does not answer in time.
    """
    folder = run / FOLDER
    _safe(folder)
    about = _under_way(run)
    path = folder / f"{secrets.token_hex(16)}.ask"
    try:
        _write(path, {"what": what, "by": by})
    except OSError as error:
        raise RunError(
            f"nothing can be asked of {run}", why=str(error), fix="Ask as a user who may write there."
        ) from error
    gone = about.get("host") == socket.gethostname() and not _alive(about)
    try:
        return _awaited(run, path, about, min(timeout, GRACE) if gone else timeout)
    finally:
        for left in (path, path.with_suffix(".answer")):
            with contextlib.suppress(OSError):
                left.unlink()
        if gone:
            _tidy(folder)


def _awaited(run: Path, path: Path, about: dict[str, Any], timeout: float) -> Answer:
    until = time.monotonic() + timeout
    while True:
        over = _over(run, about)  # looked at before the answer: a run answers everything before it is over
        with contextlib.suppress(OSError, KeyError, TypeError):
            found = _read(path.with_suffix(".answer"))
            return Answer(str(found["refused"]), found["state"], int(found["process"]), str(found["host"]))
        if over:
            raise _not_running(run, "it ended before it answered")
        if time.monotonic() > until:
            raise _unanswered(run, about, timeout)
        time.sleep(LOOK / 4)


def _unanswered(run: Path, about: dict[str, Any], timeout: float) -> RunError | UnansweredError:
    here = about.get("host") == socket.gethostname()
    if here and not _alive(about):
        return _not_running(run, f"its process {about.get('process')} is gone, and left no word")
    return UnansweredError(
        f"the run {run} gives no answer within {timeout:g} seconds",
        why=f"it is process {about.get('process')} on {about.get('host')}",
        fix="See whether that hangs, or ask again with a longer --timeout.",
    )


def _under_way(run: Path) -> dict[str, Any]:
    """Who is at work on the run."""
    if not run.is_dir():
        raise RunError(f"there is no folder {run}", fix="Name the folder of a run.")
    try:
        return _read(run / FOLDER / RUN)
    except OSError as error:
        raise _not_running(run, "nobody is at work there") from error


def _over(run: Path, about: dict[str, Any]) -> bool:
    """Whether the run has ended, or another one has begun in its place."""
    try:
        return _read(run / FOLDER / RUN).get("token") != about.get("token")
    except FileNotFoundError:
        return True
    except OSError:
        return False  # a file system that hesitates


def _not_running(run: Path, why: str) -> RunError:
    return RunError(
        f"the run {run} is not running", why=why, fix=f"`lorakit resume {run}` goes on with one that stopped."
    )


def _alive(about: dict[str, Any]) -> bool:
    """Whether the process lives on this machine, and is not another one of the same number."""
    try:
        return bool(abs(psutil.Process(int(about["process"])).create_time() - float(about["began"])) < 2)
    except (psutil.Error, KeyError, TypeError, ValueError):
        return False


# -- files -------------------------------------------------------------------------------------------------------


def _safe(folder: Path) -> None:
    """Refuse a channel that leads elsewhere."""
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise RunError(f"{folder} is no folder of its own", why="a link would lead out of the run", fix="Remove it.")


def _read(path: Path) -> dict[str, Any]:
    """A small plain file's table; OSError where it is anything else, or not there yet."""
    about = path.lstat()
    if not stat.S_ISREG(about.st_mode) or about.st_size > LARGEST:
        raise OSError(f"{path} is no message")
    with os.fdopen(os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0)), "rb") as file:
        try:
            return jsontext.table(file.read(LARGEST))
        except ValueError as error:
            raise OSError(f"{path} is no message: {error}") from error


def _write(path: Path, table: dict[str, Any]) -> None:
    aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with aside.open("x", encoding="utf-8") as file:
            file.write(dumps(table))
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def _remove(path: Path) -> None:
    """Remove a file; Windows refuses that while somebody reads it, which is soon over."""
    for _ in range(20):
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
            return
        time.sleep(LOOK / 4)


def _tidy(folder: Path) -> None:
    """Remove the folder, unless an answer still waits there for whoever asked."""
    with contextlib.suppress(OSError):
        folder.rmdir()
