"""Pictures drawn with one LoRA file."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from lorakit.control import Control
from lorakit.engine import memory, preview
from lorakit.engine.cache import Cache
from lorakit.engine.int8_products import told
from lorakit.engine.phases import Context, StopAsked
from lorakit.engine.source import cache_folder, locate
from lorakit.engine.studio import opened
from lorakit.errors import TrainingError
from lorakit.events import DrawingStopped, Event, PhaseFinished, PhaseProgress, PhaseStarted, PictureDrawn
from lorakit.lora_facts import Facts
from lorakit.plan import Plan
from lorakit.registry import Shelves


def context_of(plan: Plan, shelves: Shelves, control: Control) -> Context:
    """What drawing works with."""
    family = shelves.families.find(plan.settings.family, "the plan")
    device = memory.device_for(plan.settings.model.device)
    return Context(plan, family, shelves, locate(plan, family), Cache(cache_folder(plan)), device, control)


@contextmanager
def within_memory(plan: Plan) -> Iterator[None]:
    """Say what to do where memory runs out."""
    try:
        yield
    except Exception as error:
        if not memory.is_exhausted(error):
            raise
        settings = plan.settings
        raise TrainingError(
            f"memory ran out while drawing at {settings.sampling.width}x{settings.sampling.height}",
            why=str(error).splitlines()[0],
            fix="Draw smaller pictures (--size), or hold the base in fewer bits (--set quantization.name=int8).",
        ) from error


def sample(
    plan: Plan, shelves: Shelves, control: Control, facts: Facts, strength: float, places: Sequence[Path]
) -> Iterator[Event]:
    """Draw every prompt of the plan at this strength, into `places` in their order."""
    settings, drawn = plan.settings.sampling, 0
    context = context_of(plan, shelves, control)
    try:
        with within_memory(plan):
            studio = yield from opened(context, facts)
            began = time.perf_counter()
            yield PhaseStarted(phase="draw", total=len(places))
            for number, path in enumerate(places):
                context.check()
                preview.save(studio.draw(number, strength, settings.guidance), path)
                yield from told(studio.base.products)
                drawn += 1
                yield PictureDrawn(
                    path=str(path),
                    prompt=settings.prompts[number],
                    strength=strength,
                    guidance=settings.guidance,
                    seed=settings.seed + number,
                )
                yield PhaseProgress(phase="draw", done=drawn, note=settings.prompts[number])
            yield PhaseFinished(phase="draw", seconds=time.perf_counter() - began)
    except StopAsked:
        yield DrawingStopped(drawn=drawn, total=len(places), reason=control.reason)
