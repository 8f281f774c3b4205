"""The plan: every decision of a run, who took it and why; frozen, printable, comparable, JSON."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from lorakit import jsontext
from lorakit.errors import ConfigError, RunError
from lorakit.order import Arithmetic
from lorakit.planned import Planned
from lorakit.problem import Problem
from lorakit.rules import Choice
from lorakit.secret import redacted

VERSION = 1  # of the JSON form
DERIVED = "from the other, by the run's arithmetic"


class Plan(BaseModel):
    """Everything that will happen, decided before any weight is loaded."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: int = VERSION
    lorakit: str
    settings: Planned
    choices: dict[str, Choice]
    arithmetic: Arithmetic
    dataset: str = ""
    held_out: tuple[str, ...] = ()
    """The pictures that are never trained on."""
    problems: tuple[Problem, ...] = ()
    plugins: dict[str, str] = {}

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return Path(self.settings.output).expanduser() / self.settings.name

    @property
    def errors(self) -> tuple[Problem, ...]:
        """The problems that stop the run."""
        return tuple(problem for problem in self.problems if problem.severity == "error")

    def to_json(self) -> str:
        """The plan as JSON text without secrets, that `from_json` reads back equal."""
        return redacted(self.model_dump_json(indent=1)) + "\n"

    @staticmethod
    def from_json(text: str, where: str = "plan.json") -> Plan:
        """The plan that `to_json` wrote; what `lorakit plan --json` adds, its estimate, is left out."""
        try:
            table = jsontext.parse(text)
            if isinstance(table, dict):
                table.pop("estimate", None)
            plan = Plan.model_validate(table)
            if plan.version != VERSION:
                raise ValueError(f"it has the form {plan.version}, and this lorakit reads the form {VERSION}")
        except ValueError as error:
            raise RunError(
                f"{where} is not a plan that this lorakit reads",
                why=str(error).splitlines()[0],
                fix="It was cut short, edited, or written by another version.",
            ) from error
        thawed = {name: replace(one, value=_frozen(one.value)) for name, one in plan.choices.items()}
        return plan.model_copy(update={"choices": thawed})

    def with_settings(self, **sections: Any) -> Plan:
        """The same plan with some settings replaced; for hosts and tests, past every rule."""
        return self.model_copy(update={"settings": self.settings.model_copy(update=sections)})


def _frozen(value: object) -> object:
    return tuple(_frozen(item) for item in value) if isinstance(value, list) else value


def agree(updates: int | None, epochs: float | None, batches: int, accumulation: int) -> tuple[int, float]:
    """Updates and epochs that mean the same, from one of them; both given must agree to the update.

    An update takes `accumulation` batches; the last one of a run counted in epochs may take fewer.
    """
    if not batches:
        return updates or 0, epochs or 0.0
    if epochs is not None:
        meant = max(1, -(-round(epochs * batches) // accumulation))
        if updates is not None and updates != meant:
            raise ConfigError(
                f"train.updates = {updates} and train.epochs = {epochs:g} disagree",
                why=f"{epochs:g} epochs of {batches} batches are {meant} updates at accumulation {accumulation}",
                fix="Leave one of them out.",
            )
        return meant, epochs
    assert updates is not None
    return updates, updates * accumulation / batches
