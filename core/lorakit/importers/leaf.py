"""One key of a foreign file."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Leaf:
    """A key by its path (`train.lr`, `datasets[0].folder_path`), its value, and its line, 0 where unknown.

    Lists of plain values are one leaf; an empty list or table is one too. `shadowed` says that the file says the same
    key again further down; `file` names the file where it is not the one that was asked for.
    """

    key: str
    value: Any
    line: int = 0
    shadowed: bool = False
    file: str = ""


def joined(prefix: str, key: str) -> str:
    """The path of a key below `prefix`; a key that could be taken for a path stands in quotes."""
    name = key if re.fullmatch(r"[^\s.\[\]\"]+", key) else json.dumps(key)
    return f"{prefix}.{name}" if prefix else name
