"""Models that come as one safetensors file: its header, read without any library that knows tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lorakit import jsontext
from lorakit.errors import ModelError

PICKLED = (".ckpt", ".pt", ".pth", ".bin")
LONGEST = 16 << 20
"""Bytes of a header that is read: a model's has about 0.1 MB, kohya's tag statistics bring a few more. The format
allows 100 MB, which as Python objects is ten times that."""


@dataclass(frozen=True, slots=True)
class Stored:
    """How a tensor lies in a file: its number format as safetensors calls it (`F16`), and its shape."""

    dtype: str
    shape: tuple[int, ...]


Header = Mapping[str, Stored]
"""Every tensor of a file by its name."""


def header(file: Path, where: str = "") -> Header:
    """What a safetensors file says that it holds; its tensors are not read. ModelError where it is another file."""
    if file.suffix.lower() in PICKLED:
        raise ModelError(
            f"the model file {file} is pickled",
            where=where,
            why="reading a pickle runs whatever program its author put in it",
            fix="Use the model's .safetensors file, or convert it with a tool that you trust.",
        )
    try:
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            if not 0 < length <= min(LONGEST, file.stat().st_size - 8):
                raise ValueError("its length does not fit")
            table = jsontext.parse(opened.read(length))
        table.pop("__metadata__", None)
        return {name: Stored(one["dtype"], tuple(one["shape"])) for name, one in table.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(
            f"the model file {file} is no safetensors file",
            where=where,
            why=f"its header cannot be read: {error}",
            fix="Download it again, or name a model folder.",
        ) from error
