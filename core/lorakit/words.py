"""Numbers and lists in words."""

from __future__ import annotations

from collections.abc import Sequence


def count(number: float, noun: str) -> str:
    """The number, to two decimals at most, with its noun in the right form."""
    plural = f"{noun}es" if noun.endswith(("ss", "tch")) else f"{noun}s"
    return f"{round(number, 2):.10g} {noun if number == 1 else plural}"


def some(names: Sequence[str], most: int = 5, of: int | None = None) -> str:
    """The first few names, and how many more there are, `of` so many where not all are given."""
    shown, total = "; ".join(names[:most]), len(names) if of is None else of
    return f"{shown}; and {total - most} more" if total > most else shown
