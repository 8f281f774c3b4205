"""The planned training objective, made for the model at hand."""

from __future__ import annotations

from lorakit.engine.phases import Context
from lorakit.engine.schedulers import Scheduler
from lorakit.engine.source import scheduler_config


def make_scheduler(context: Context) -> Scheduler:
    """The plan's scheduler, told the variant's shift and what the model's own scheduler_config.json says."""
    settings = context.plan.settings
    kind = context.shelves.schedulers.find(settings.scheduler.name, "the plan").resolve()
    shift = context.family.variants[settings.variant].flow_shift
    made: Scheduler = kind(settings.scheduler, shift, scheduler_config(context.source))
    return made
