"""Models that come as one safetensors file: its header, read without any library that knows tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorakit import jsontext
from lorakit.errors import ModelError

PICKLED = (".ckpt", ".pt", ".pth", ".bin")
LONGEST = 16 << 20
"""Bytes of a header that is read: a model's has about 0.1 MB, kohya's tag statistics bring a few more. The format
allows 100 MB, which as Python objects is ten times that."""


@dataclass(frozen=True, slots=True)
class Stored:
    """How a tensor lies in a file: its number format as safetensors calls it (`F16`), its shape, its first byte."""

    dtype: str
    shape: tuple[int, ...]
    begin: int = 0


Header = Mapping[str, Stored]
"""Every tensor of a file by its name."""


@dataclass(frozen=True, slots=True)
class Contents:
    """What a file says that it holds, and what it says of itself."""

    header: Header
    metadata: Mapping[str, str]


def header(file: Path, where: str = "") -> Header:
    """What a model file says that it holds; its tensors are not read. ModelError where it is another file."""
    return contents(file, where).header


def contents(file: Path, where: str = "", what: str = "model") -> Contents:
    """The same, with the file's metadata; `what` it is for a person."""
    if file.suffix.lower() in PICKLED:
        raise ModelError(
            f"the {what} file {file} is pickled",
            where=where,
            why="reading a pickle runs whatever program its author put in it",
            fix=f"Use the {what}'s .safetensors file, or convert it with a tool that you trust.",
        )
    try:
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            if not 0 < length <= min(LONGEST, file.stat().st_size - 8):
                raise ValueError("its length does not fit")
            table = jsontext.table(opened.read(length))
        about = table.pop("__metadata__", None) or {}
        return Contents(
            {name: _stored(one, length + 8) for name, one in table.items()},
            {str(name): str(value) for name, value in about.items()},
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise ModelError(
            f"the {what} file {file} is no safetensors file",
            where=where,
            why=f"its header cannot be read: {error}",
            fix="Download it again, or name a model folder." if what == "model" else "Copy or download it again.",
        ) from error


def _stored(one: Mapping[str, Any], start: int) -> Stored:
    """What the header says of one tensor; the bytes of all begin at `start`."""
    shape, begin = tuple(map(int, one["shape"])), int(one["data_offsets"][0])
    if begin < 0 or min(shape, default=0) < 0 or not isinstance(one["dtype"], str):
        raise ValueError("a number in it is negative, or a format no text")
    return Stored(one["dtype"], shape, start + begin)
