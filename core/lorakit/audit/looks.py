"""Many pictures looked at: on every core, and once only while the files stay the same."""

from __future__ import annotations

import os
import signal
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from lorakit.audit.look import VERSION, Look, look
from lorakit.errors import DataError
from lorakit.remembered import Notebook, Notes, Stamp, stamp

if TYPE_CHECKING:
    from collections.abc import Iterable

Answer = TypeVar("Answer")

FEW = 48  # pictures that one process looks at sooner than others are started
MOST_WORKERS = 16
AT_ONCE = 8  # pictures that a worker is given at a time
KIND = f"look {VERSION}"  # of notes


def looks(
    paths: Sequence[str],
    tell: Callable[[int, int], object] = lambda done, total: None,
    work: Callable[[Callable[[str], Look], Sequence[str]], Iterator[Look]] | None = None,
) -> dict[str, Look]:
    """A look at each picture; `tell` hears how many are done of how many that are not known from earlier.

    `work` is who does it: as many processes as there are cores, or `map`, where starting others would be rude.
    """
    notebook = Notebook()
    by_folder: defaultdict[str, list[str]] = defaultdict(list)
    for path in dict.fromkeys(paths):
        by_folder[os.path.dirname(path)].append(path)  # noqa: PTH120 - ten thousand times
    stamps: dict[str, Stamp] = {}
    found: dict[str, Look] = {}
    for folder, members in by_folder.items():
        known = notebook.read(KIND, str(Path(folder).absolute()))
        for path in members:
            stamps[path] = _stamp(path)
            note = known.get(os.path.basename(path))  # noqa: PTH119
            if note is not None and note[0] == stamps[path]:
                found[path] = _read(note[1])
    missing = [path for path in stamps if path not in found]
    try:
        for path, seen in zip(missing, (work or each)(look, missing), strict=True):
            found[path] = seen
            tell(len(found) - len(stamps) + len(missing), len(missing))
    finally:  # what was seen before Ctrl-C counts too
        for folder in {os.path.dirname(path) for path in missing}:  # noqa: PTH120
            notes: Notes = {
                os.path.basename(path): (stamps[path], astuple(found[path]))  # noqa: PTH119
                for path in by_folder[folder]
                if path in found and stamps[path]
            }
            notebook.write(KIND, str(Path(folder).absolute()), notes)
    return found


def each(work: Callable[[str], Answer], paths: Sequence[str]) -> Iterator[Answer]:
    """The answers in order, from as many processes as there are cores."""
    workers = min(MOST_WORKERS, _cores(), -(-len(paths) // AT_ONCE))
    if len(paths) < FEW or workers < 2:
        yield from map(work, paths)
        return
    from concurrent.futures.process import BrokenProcessPool

    try:
        with _pool(workers) as results:
            yield from results(work, paths)
    except BrokenProcessPool:
        raise DataError(
            "a process that looked at pictures was ended from outside",
            why="most likely there was not enough memory",
            fix="Run it again: what was seen is remembered.",
        ) from None


@contextmanager
def _pool(workers: int) -> Iterator[Callable[[Callable[[str], Answer], Sequence[str]], Iterable[Answer]]]:
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    # started anew, not forked: whoever embeds lorakit may have threads
    with ProcessPoolExecutor(workers, get_context("spawn"), _leave_ctrl_c_to_the_parent) as pool:
        try:
            yield lambda work, paths: pool.map(work, paths, chunksize=AT_ONCE)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _leave_ctrl_c_to_the_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _stamp(path: str) -> Stamp:
    try:
        return stamp(os.stat(path))  # noqa: PTH116 - ten thousand times
    except (OSError, ValueError):
        return ""


def _read(value: list[Any]) -> Look:
    *rest, detail = value
    return Look(*rest, tuple(detail))  # type: ignore[call-arg]
