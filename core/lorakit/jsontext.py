"""JSON that somebody else may have written, read so that anything wrong with it is a ValueError."""

from __future__ import annotations

import json
from typing import Any


def parse(text: str | bytes) -> Any:
    """What the text says; ValueError where it is not JSON, not UTF-8, or nested too deeply to be read."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def table(text: str | bytes) -> dict[str, Any]:
    """The object that the text says; ValueError where it says anything else."""
    found = parse(text)
    if not isinstance(found, dict):
        raise ValueError("it is not a table")
    return found
