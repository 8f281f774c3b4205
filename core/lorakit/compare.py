"""Plans side by side: the settings that differ, with who decided each, and what each run takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lorakit.plan import DERIVED, Plan
from lorakit.rules import Choice
from lorakit.words import count

UNKNOWN = "not known"
OWN = ("name", "preset", "output")
"""Settings that differ because the runs do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """What a run is estimated to take; None is not known. Memory is in bytes, time in seconds."""

    memory: float | None = None
    update: float | None = None
    whole: float | None = None


@dataclass(frozen=True, slots=True)
class Side:
    """One of the plans that are compared, by the preset that was asked for."""

    title: str
    plan: Plan
    taken: Taken = Taken()


def differing(sides: Sequence[Side]) -> dict[str, tuple[Choice | None, ...]]:
    """The settings that are not the same in all plans, with the choice of each; None where a plan has none."""
    names = {name: None for side in sides for name in side.plan.choices if name not in OWN and name != "data"}
    found = {name: tuple(_choice(side.plan, name) for side in sides) for name in names}
    return {
        name: choices for name, choices in found.items() if any(_value(one) != _value(choices[0]) for one in choices)
    }


def _choice(plan: Plan, name: str) -> Choice | None:
    """The plan's choice; None where it follows from pictures and there are none."""
    choice = plan.choices.get(name)
    return None if choice and choice.because == DERIVED and not plan.arithmetic.images else choice


def _value(choice: Choice | None) -> object:
    return choice.value if choice else None


def told(choice: Choice | None) -> str:
    """A value as it is shown."""
    value = _value(choice)
    if value is None:
        return "-"
    if isinstance(value, tuple):
        return ", ".join(map(str, value)) or "none"
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"{value:g}" if isinstance(value, float) else str(value)


def decided(choice: Choice | None) -> str:
    """Who decided it, and why where that is not plain."""
    if choice is None:
        return ""
    if choice.because.startswith("asked for"):
        return choice.decided_by
    return "default" if choice.because == "default" else f"{choice.decided_by}: {choice.because}"


def figures(side: Side) -> dict[str, str]:
    """The run's length and what it takes, in words."""
    sums, taken = side.plan.arithmetic, side.taken
    known = bool(sums.images)
    return {
        "updates": f"{sums.updates} ({count(sums.epochs, 'epoch')}, {count(sums.passes, 'pass')})"
        if known
        else UNKNOWN,
        "memory of the device": UNKNOWN if taken.memory is None else f"{taken.memory / 1e9:.1f} GB",
        "seconds an update": UNKNOWN if taken.update is None else f"{taken.update:.2f} s",
        "the whole run": UNKNOWN if taken.whole is None else _long(taken.whole),
    }


def _long(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{seconds / 60:.0f} min"


def table(sides: Sequence[Side]) -> dict[str, Any]:
    """The comparison for programs: bytes, seconds, None for what is not known."""
    return {
        "compared": [side.title for side in sides],
        "settings": {name: [_entry(choice) for choice in choices] for name, choices in differing(sides).items()},
        "runs": [
            {
                "updates": side.plan.arithmetic.updates if side.plan.arithmetic.images else None,
                "epochs": side.plan.arithmetic.epochs if side.plan.arithmetic.images else None,
                "memory": side.taken.memory,
                "seconds_per_update": side.taken.update,
                "seconds": side.taken.whole,
                "problems": [{"severity": one.severity, "message": one.message} for one in side.plan.problems],
            }
            for side in sides
        ],
    }


def _entry(choice: Choice | None) -> Mapping[str, Any] | None:
    if choice is None:
        return None
    return {"value": choice.value, "decided_by": choice.decided_by, "because": choice.because}


def rows(sides: Sequence[Side]) -> list[tuple[str, list[tuple[str, str]]]]:
    """(name, (value, who decided) of each plan), settings first, then figures."""
    found = [
        (name, [(told(choice), decided(choice)) for choice in choices]) for name, choices in differing(sides).items()
    ]
    about = [figures(side) for side in sides]
    return found + [(name, [(one[name], "") for one in about]) for name in about[0]]


def markdown(sides: Sequence[Side]) -> str:
    """The comparison as a table in Markdown."""
    lines = [["", *(side.title for side in sides)], ["---"] * (len(sides) + 1)]
    lines += [[name, *(f"{value} ({why})" if why else value for value, why in cells)] for name, cells in rows(sides)]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)
