"""The whole extension surface on one screen: eight hooks.

One party must answer: a method of the family. Several parties may have a say: a hook. Nobody needs an answer: an
event. No hook is firstresult, historic or a wrapper, so the order of plugins never matters.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    import click

    from lorakit.events import Event
    from lorakit.family import Family
    from lorakit.plan import Plan
    from lorakit.problem import Problem
    from lorakit.registry import Registry, Shelves
    from lorakit.request import Request
    from lorakit.rules import Rule

hookspec = pluggy.HookspecMarker("lorakit")
hookimpl = pluggy.HookimplMarker("lorakit")

# -- nouns: what exists ------------------------------------------------------------------------------------------


@hookspec
def register(registry: Registry) -> None:
    """Add families, schedulers, quantizers, optimizers, importers, trackers, presets or settings; no name twice."""


@hookspec
def register_commands(cli: click.Group) -> None:
    """Add commands to the click group, which is built anew for each Kit."""


# -- rules: what is allowed, and what is wished for; `family` is that of the request, with its facts;
# `shelves` hold what every plugin brought, by name: `shelves.quantizers`, `shelves.schedulers` ------------------------


@hookspec
def scheduler_rules(request: Request, family: Family, shelves: Shelves) -> Iterable[Rule] | None:
    """Rules about `scheduler.name` and `scheduler.timesteps`."""


@hookspec
def quantization_rules(request: Request, family: Family, shelves: Shelves) -> Iterable[Rule] | None:
    """Rules about `quantization.name`."""


@hookspec
def text_encoder_rules(request: Request, family: Family, shelves: Shelves) -> Iterable[Rule] | None:
    """Rules about `text_encoder.train` and `text_encoder.template`."""


@hookspec
def sampling_rules(request: Request, family: Family, shelves: Shelves) -> Iterable[Rule] | None:
    """Rules about `sampling.guidance` and `sampling.steps`."""


@hookspec
def check_plan(plan: Plan) -> Iterable[Problem] | None:
    """Problems of the whole plan; one of severity error stops the run before any weight is loaded."""


# -- facts: what happened ----------------------------------------------------------------------------------------


@hookspec
def on_event(event: Event, plan: Plan) -> None:
    """Told of every event; an observer that raises becomes a warning event and never stops training."""


NOUN_HOOKS = ("register", "register_commands")
RULE_HOOKS = ("scheduler_rules", "quantization_rules", "text_encoder_rules", "sampling_rules")
