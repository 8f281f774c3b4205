"""Safetensors files opened only where their header is of a sane size: what somebody else wrote is not believed.

The library itself refuses headers that do not parse, are nested deeply, or whose tensors overlap, have holes between
them or other sizes than their shapes say.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from lorakit.single_file import LONGEST


def check(path: Path) -> None:
    """Raise SafetensorError, after reading eight bytes, where the header cannot be one that is meant."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
    if length + 8 > size:
        raise SafetensorError(f"its header of {length} bytes does not fit into {size} bytes")
    if length > LONGEST:
        raise SafetensorError(f"its header has {length} bytes, and {LONGEST} are the most that is read")


def opened(path: Path) -> Any:
    """The file as `safe_open` opens it, on the CPU, once its header is checked."""
    check(path)
    return safe_open(path, framework="pt", device="cpu")
