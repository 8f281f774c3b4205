"""Values that are computed once: safetensors files named by the content of everything that feeds them.

A changed input has another name, so nothing stale is ever served; an unchanged one is never computed again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import threading
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from lorakit import jsontext
from lorakit.engine.headers import opened
from lorakit.errors import DataError

DIGEST = "sha256"
"""The key of a value's checksum in its file's metadata."""

SETTLED = 2_000_000_000
"""Nanoseconds after which a file that changes again must get another time stamp, on any file system."""

ABANDONED = 86_400
"""Seconds after which nobody is still writing a file."""


class FileHashes:
    """SHA-256 of files, remembered by size, times and inode, so that a file is read once in its life."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: dict[str, list[Any]] = {}
        self._changed = False
        with contextlib.suppress(OSError, ValueError):  # the first run, or a torn file: everything is hashed again
            self._known = jsontext.table(path.read_bytes())

    def of(self, path: Path) -> str:
        """The hexadecimal digest of the file's bytes."""
        stat = path.stat()
        stamp = [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]
        known = self._known.get(str(path.absolute()))
        if isinstance(known, list) and len(known) == 2 and known[0] == stamp:
            return str(known[1])
        with path.open("rb") as file:
            digest = _digest(file)
        if time.time_ns() - stat.st_ctime_ns > SETTLED:
            self._known[str(path.absolute())] = [stamp, digest]
            self._changed = True
        return digest

    def of_folders(self, folders: Iterable[Path]) -> str:
        """One digest of every file below the folders, names included."""
        parts = [
            [folder.name, str(path.relative_to(folder)), self.of(path)]
            for folder in folders
            for path in sorted(folder.rglob("*"))
            if path.is_file() and not path.name.startswith(".")
        ]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def save(self) -> None:
        """Remember for the next run."""
        if self._changed:
            write_atomically(self._path, json.dumps(self._known).encode())
            self._changed = False


def _digest(file: BinaryIO) -> str:
    made = hashlib.sha256()
    while chunk := file.read(1 << 20):
        made.update(chunk)
    return made.hexdigest()


def _content(tensors: Mapping[str, Tensor]) -> str:
    """A digest of tensors on the CPU: their names, forms and bytes."""
    made = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        made.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        made.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return made.hexdigest()


class Cache:
    """A folder of safetensors files, each named by its key."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files = FileHashes(folder / "files.json")
        self._sound: set[str] = set()  # what was held against its checksum once, and is read without from then on

    def key(self, **facts: Any) -> str:
        """The name of a value: a digest of everything that it depends on."""
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    def __contains__(self, key: str) -> bool:
        """Whether there is a value under `key`, whole and as it was stored."""
        try:
            return bool(self.load(key))
        except KeyError:
            return False

    def load(self, key: str) -> dict[str, Tensor]:
        """The tensors under `key`; KeyError where there are none, or where they are not those that were stored."""
        try:
            with opened(self._path(key)) as file:
                told = dict(file.metadata() or {}).get(DIGEST)
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a mapping)
            if key not in self._sound and told != _content(tensors):
                raise KeyError(key)
        except (SafetensorError, OSError):
            raise KeyError(key) from None
        self._sound.add(key)
        return tensors

    def store(self, key: str, tensors: Mapping[str, Tensor]) -> None:
        """Put tensors under `key`, whole or not at all."""
        held = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        self._sound.discard(key)
        write_atomically(self._path(key), safetensors.torch.save(held, {DIGEST: _content(held)}))

    def remove(self, key: str) -> None:
        """Forget `key`."""
        self._path(key).unlink(missing_ok=True)

    def tidy(self) -> None:
        """Take away what a process that was killed while writing left behind, after a day: a live one is done then."""
        for aside in self.folder.glob("??/.*"):
            with contextlib.suppress(OSError):  # another process was quicker
                if time.time() - aside.stat().st_mtime > ABANDONED:
                    aside.unlink()

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.safetensors"


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that nobody ever sees half of it; others may read it as the umask says.

    safetensors' own writer gives files mode 0600, which a ComfyUI service under another user cannot read.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with aside.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            aside.unlink(missing_ok=True)
        raise DataError(
            f"{path} cannot be written", why=str(error), fix="Free some space, or name another --output."
        ) from error


def sync(folder: Path) -> None:
    """Make what was renamed in `folder` last through a power cut, where the system can."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return  # Windows has no folder handles
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
