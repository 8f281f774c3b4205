"""Numbers in words."""

from __future__ import annotations


def count(number: float, noun: str) -> str:
    """The number, to two decimals at most, with its noun in the right form."""
    plural = f"{noun}es" if noun.endswith(("ss", "tch")) else f"{noun}s"
    return f"{round(number, 2):.10g} {noun if number == 1 else plural}"
