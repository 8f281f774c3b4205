"""What was found out about files, kept between commands in a small database of the user's cache folder.

A note counts only while its file has the same size, times and inode. Whatever is wrong with the database, a lock that
stays, a full disk or a torn file, means that nothing is remembered, and never that a command fails.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

if TYPE_CHECKING:
    import sqlite3

Answer = TypeVar("Answer")

Stamp: TypeAlias = str
"""Size, times of change of content and of inode in nanoseconds, and number of the inode, in one line."""

Notes: TypeAlias = dict[str, tuple[Stamp, Any]]
"""What is known of the files of a folder, by their names: anything that JSON holds."""

VERSION = 1  # of the table and of the notes in it; another version has a file of its own
SETTLED = 2_000_000_000
"""Nanoseconds after which a file that changes again must get another time stamp, on any file system."""

PATIENCE = 2.0  # seconds to wait while another command writes
FOLDERS = 500  # folders of which notes are kept; the oldest go

TABLE = """
create table if not exists notes (
    number integer primary key, kind text, folder text, value text, unique (kind, folder)
)
"""


def cache_folder() -> Path:
    """`lorakit` in the folder that XDG_CACHE_HOME names, where that is an absolute path, or in ~/.cache."""
    named = os.environ.get("XDG_CACHE_HOME", "")
    root = Path(named)
    return (root if root.is_absolute() else Path("~/.cache").expanduser()) / "lorakit"


def stamp(stat: os.stat_result) -> Stamp:
    """What a file's notes are true for."""
    return f"{stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns} {stat.st_ino}"


class Notebook:
    """Notes about files, by kind and folder."""

    def __init__(self, file: Path | None = None) -> None:
        self._file = file

    def read(self, kind: str, folder: str) -> Notes:
        """Every note of a kind about files of a folder; empty where nothing can be read."""
        ask = "select value from notes where kind = ? and folder = ?"
        row = self._with(lambda base: base.execute(ask, (kind, folder)).fetchone(), make=False)
        with suppress(ValueError, TypeError):
            return dict(json.loads(row[0])) if row else {}
        return {}

    def write(self, kind: str, folder: str, notes: Mapping[str, tuple[Stamp, Any]]) -> None:
        """Put notes in the place of earlier ones; what may still change under the same stamp is left out."""
        now = time.time_ns()
        value = json.dumps({name: note for name, note in notes.items() if _settled(note[0], now)})
        self._with(lambda base: _replace(base, (kind, folder, value)), make=True)

    def _with(self, work: Callable[[sqlite3.Connection], Answer], make: bool) -> Answer | None:
        """What `work` answers in one transaction, or None where that is not possible."""
        import sqlite3

        try:
            file = self._file or cache_folder() / f"pictures-{VERSION}.sqlite"
            if make:
                file.parent.mkdir(parents=True, exist_ok=True)
            elif not file.exists():
                return None
            with closing(sqlite3.connect(file, timeout=PATIENCE)) as base, base:
                if make:
                    base.execute(TABLE)
                return work(base)
        except (OSError, RuntimeError, UnicodeError, sqlite3.Error) as error:
            if type(error) is sqlite3.DatabaseError:  # torn, or something else by that name
                with suppress(OSError):
                    file.unlink(missing_ok=True)
            return None


def _settled(one: Stamp, now: int) -> bool:
    """Whether a file has been as it is for so long that a change would show in its stamp."""
    _, modified, changed, _ = one.split()
    return not (now - SETTLED <= int(modified) <= now or now - SETTLED <= int(changed) <= now)


def _replace(base: sqlite3.Connection, row: tuple[str, str, str]) -> None:
    base.execute("insert or replace into notes (kind, folder, value) values (?, ?, ?)", row)
    base.execute("delete from notes where number <= (select max(number) from notes) - ?", (FOLDERS,))
