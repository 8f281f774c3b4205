"""The fields that rules decide, and everything that is said about them."""

from __future__ import annotations

from collections.abc import Iterator

import pluggy

from lorakit import hooks
from lorakit.errors import PluginError
from lorakit.family import Family, Variant
from lorakit.plugins import call
from lorakit.registry import Part, Shelves
from lorakit.request import Request
from lorakit.rules import Field, Rule, Scope, Voice, never

GROUPS = {
    "scheduler_rules": ("scheduler.name", "scheduler.timesteps"),
    "quantization_rules": ("quantization.name",),
    "text_encoder_rules": ("text_encoder.train", "text_encoder.template"),
    "sampling_rules": ("sampling.guidance", "sampling.steps"),
}
"""Which fields each rule hook may speak about."""


def fields(family: Family, variant: Variant, shelves: Shelves) -> tuple[Field, ...]:
    """The fields that do not depend on one another."""
    known = tuple(shelves.schedulers)
    return (
        Field(
            "scheduler.name",
            "scheduler_rules",
            known,
            "flowmatch",
            "what most families were trained with",
            unknown="it is what a model is taught to predict; its sampler follows from that, as euler from flowmatch",
        ),
        Field("quantization.name", "quantization_rules", tuple(shelves.quantizers), "none", "nothing asks for less"),
        Field("text_encoder.train", "text_encoder_rules", (False, True), False, "frozen and cached is cheapest"),
        Field(
            "text_encoder.template",
            "text_encoder_rules",
            variant.templates,
            variant.templates[0],
            f"what {family.title} is prompted with",
        ),
        Field("sampling.guidance", "sampling_rules", None, 1.0, "no guidance unless somebody asks for it"),
        Field("sampling.steps", "sampling_rules", None, 28, "enough for most models"),
    )


def timesteps(scheduler: Part) -> Field:
    """The field that depends on the scheduler chosen: its ways of drawing noise levels."""
    return Field(
        "scheduler.timesteps",
        "scheduler_rules",
        scheduler.offers,
        scheduler.offers[0] if scheduler.offers else "",
        f"the usual way with {scheduler.name}",
    )


def voices(request: Request, family: Family, shelves: Shelves, pm: pluggy.PluginManager) -> list[Voice]:
    """Everything that plugins, the family and core say about a request's fields."""
    found: list[Voice] = []
    for hook in hooks.RULE_HOOKS:
        for answer in call(pm, hook, request=request, family=family, shelves=shelves):
            scope: Scope = "family" if answer.owner == f"family {family.name}" else "plugin"
            for rule in answer.value or ():
                _check_rule(rule, hook, answer.owner)
                found.append(Voice(rule, answer.owner, scope))
    found += [Voice(rule, f"family {family.name}", "family") for rule in _recovery(request, family)]
    if not family.trainable_text:
        because = f"the text encoder of {family.title} cannot be trained"
        found.append(Voice(never("text_encoder.train", True, because=because), "lorakit", "core"))
    return found


def _recovery(request: Request, family: Family) -> Iterator[Rule]:
    """Quantizers that need a correction are refused without one."""
    settings = request.settings.quantization
    if family.needs_recovery and settings.recovery is None and not settings.uncorrected:
        because = (
            "a base in so few bits needs an accuracy recovery adapter: make one with `lorakit recover --family "
            f"{family.name} --quantization NAME -o FILE` and name it in quantization.recovery, or say "
            "quantization.uncorrected = true"
        )
        yield never("quantization.name", *family.needs_recovery, because=because)


def _check_rule(rule: object, hook: str, owner: str) -> None:
    if not isinstance(rule, Rule):
        raise PluginError(f"{owner} answers {hook} with {rule!r}, which is not a rule", fix="Use only, never, prefer.")
    if rule.field not in GROUPS[hook]:
        raise PluginError(
            f"{owner} has a rule about '{rule.field}' in {hook}",
            why=f"that hook speaks about {', '.join(GROUPS[hook])}",
            fix="Name one of these fields, or answer another hook.",
        )
