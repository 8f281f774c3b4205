"""Pictures drawn with one LoRA file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from lorakit.control import Control
from lorakit.engine import memory, preview
from lorakit.engine.cache import Cache
from lorakit.engine.phases import Context, StopAsked
from lorakit.engine.source import cache_folder, locate
from lorakit.engine.studio import opened
from lorakit.events import DrawingStopped, Event, PhaseFinished, PhaseProgress, PhaseStarted, PictureDrawn
from lorakit.lora_facts import Facts
from lorakit.plan import Plan
from lorakit.registry import Shelves


def context_of(plan: Plan, shelves: Shelves, control: Control) -> Context:
    """What drawing works with."""
    family = shelves.families.find(plan.settings.family, "the plan")
    device = memory.device_for(plan.settings.model.device)
    return Context(plan, family, shelves, locate(plan, family), Cache(cache_folder(plan)), device, control)


def sample(
    plan: Plan, shelves: Shelves, control: Control, facts: Facts, strength: float, places: Sequence[Path]
) -> Iterator[Event]:
    """Draw every prompt of the plan at this strength, into `places` in their order."""
    settings, drawn = plan.settings.sampling, 0
    context = context_of(plan, shelves, control)
    try:
        studio = yield from opened(context, facts)
        yield PhaseStarted(phase="draw", total=len(places))
        seconds = 0.0
        for number, path in enumerate(places):
            context.check()
            began = PhaseProgress(phase="draw", done=number, note=settings.prompts[number])
            yield began
            preview.save(studio.draw(number, strength, settings.guidance), path)
            drawn += 1
            made = PictureDrawn(
                path=str(path),
                prompt=settings.prompts[number],
                strength=strength,
                guidance=settings.guidance,
                seed=settings.seed + number,
            )
            seconds += made.time - began.time
            yield made
        yield PhaseFinished(phase="draw", seconds=seconds)
    except StopAsked:
        yield DrawingStopped(drawn=drawn, total=len(places), reason=control.reason)
