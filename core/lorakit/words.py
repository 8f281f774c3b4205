"""Numbers and lists in words."""

from __future__ import annotations

from collections.abc import Sequence


def count(number: float, noun: str) -> str:
    """The number, to two decimals at most, with its noun in the right form."""
    plural = f"{noun}es" if noun.endswith(("ss", "tch")) else f"{noun}s"
    return f"{round(number, 2):.10g} {noun if number == 1 else plural}"


def some(names: Sequence[str], most: int = 5) -> str:
    """The first few names, and how many more there are."""
    shown = "; ".join(names[:most])
    return f"{shown}; and {len(names) - most} more" if len(names) > most else shown
