"""Who decided what in the last plan that a command made: a note in the user's cache folder."""

from __future__ import annotations

import json
import os
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorakit import jsontext
from lorakit.remembered import cache_folder
from lorakit.secret import redacted

if TYPE_CHECKING:
    from lorakit.plan import Plan
    from lorakit.rules import Choice

VERSION = 1


@dataclass(frozen=True, slots=True)
class Decision:
    """A setting and its value in words, and every rule about it: whose, and what it says.

    `by` is who decided it, or who did together.
    """

    setting: str
    value: str
    by: tuple[str, ...]
    said: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class LastPlan:
    """What is remembered of a plan."""

    name: str
    family: str
    made: str
    decisions: tuple[Decision, ...]


def remember(plan: Plan) -> None:
    """Keep who decided what; a cache folder that cannot be written changes nothing."""
    settings, made = plan.settings, time.strftime("%Y-%m-%d %H:%M")
    decisions = tuple(_decision(choice) for choice in plan.choices.values())
    last = LastPlan(settings.name, f"{settings.family} {settings.variant}", made, decisions)
    file = _file()
    aside = file.with_name(f".{file.name}.{os.getpid()}")
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        aside.write_text(redacted(json.dumps(asdict(last))), encoding="utf-8")
        aside.replace(file)


def recall() -> LastPlan | None:
    """What `remember` kept last; None where there is nothing, or nothing that can be read."""
    try:
        table: Any = jsontext.parse(_file().read_text(encoding="utf-8"))
        decisions = tuple(
            Decision(
                setting=str(one["setting"]),
                value=str(one["value"]),
                by=tuple(map(str, one["by"])),
                said=tuple((str(who), str(words)) for who, words in one["said"]),
            )
            for one in table["decisions"]
        )
        return LastPlan(str(table["name"]), str(table["family"]), str(table["made"]), decisions)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _decision(choice: Choice) -> Decision:
    """The words of a rule are those between its owner and its reason; several may have decided together."""
    voices = [voice.partition(", because ")[0].partition(" says ") for voice in choice.voices]
    said = tuple((owner, words) for owner, _, words in voices)
    together = choice.decided_by.split(", ")
    by = tuple(together) if {*together} <= {owner for owner, _ in said} else (choice.decided_by,)
    value = choice.value if isinstance(choice.value, str) else json.dumps(choice.value, default=str)
    return Decision(choice.field, value, by, said)


def _file() -> Path:
    return cache_folder() / f"last-plan-{VERSION}.json"
