"""What a change of the settings would save of the device's memory."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from lorakit.estimate.make import estimate
from lorakit.family import Family
from lorakit.plan import Plan
from lorakit.registry import Shelves

Changes = Mapping[str, Mapping[str, Any]]
"""Settings with other values, by section."""
Saves = Callable[[Changes], float | None]
"""Bytes that changes save of the peak in training; None where nobody tells the model's size."""
STEP = 64  # pixels that the sides of a scaled bucket are multiples of


def savings(plan: Plan, family: Family, shelves: Shelves) -> Saves:
    """What changes to the plan save, each taken by itself."""

    def peak(one: Plan) -> float | None:
        made = estimate(one, family, shelves)
        return made.chosen.training if made and made.chosen else None

    def saved(changes: Changes) -> float | None:
        now, then = peak(plan), peak(changed(plan, changes))
        return None if now is None or then is None else now - then

    return saved


def changed(plan: Plan, changes: Changes) -> Plan:
    """The plan with other settings, and with the buckets of its pictures at another resolution."""
    sections = {
        section: getattr(plan.settings, section).model_copy(update=dict(values)) for section, values in changes.items()
    }
    other = plan.with_settings(**sections)
    ratio = other.settings.train.resolution / plan.settings.train.resolution
    if ratio == 1:
        return other

    def scaled(found: re.Match[str]) -> str:
        return "x".join(str(max(STEP, round(int(side) * ratio / STEP) * STEP)) for side in found.groups())

    buckets = tuple((re.sub(r"(\d+)x(\d+)", scaled, name), count) for name, count in plan.arithmetic.buckets)
    return other.model_copy(update={"arithmetic": replace(plan.arithmetic, buckets=buckets)})
