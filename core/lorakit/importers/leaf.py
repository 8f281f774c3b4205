"""One key of a foreign file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Leaf:
    """A key by its path (`train.lr`, `datasets[0].folder_path`), its value, and its line, 0 where unknown.

    Lists of plain values are one leaf; an empty list or table is one too. `shadowed` says that the file says the same
    key again further down.
    """

    key: str
    value: Any
    line: int = 0
    shadowed: bool = False
