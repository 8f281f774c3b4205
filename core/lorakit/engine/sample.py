"""Pictures drawn with one LoRA file, by one process or by several that share them."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from lorakit import launched
from lorakit.control import Control
from lorakit.engine import lora_pairs, memory, preview
from lorakit.engine.cache import Cache, write_atomically
from lorakit.engine.int8_products import told
from lorakit.engine.joining import joined
from lorakit.engine.phases import Context, StopAsked
from lorakit.engine.ranks import Ranks
from lorakit.engine.source import cache_folder, locate
from lorakit.engine.studio import encoded, opened
from lorakit.errors import TrainingError
from lorakit.events import DrawingStopped, Event, PhaseFinished, PhaseProgress, PhaseStarted, PictureDrawn
from lorakit.lora_facts import Facts
from lorakit.plan import Plan
from lorakit.registry import Shelves

AGAIN = "Start again."


def context_of(plan: Plan, shelves: Shelves, control: Control, ranks: Ranks) -> Context:
    """What drawing works with."""
    family = shelves.families.find(plan.settings.family, "the plan")
    device = ranks.device or memory.device_for(plan.settings.model.device)
    return Context(plan, family, shelves, locate(plan, family), Cache(cache_folder(plan)), device, control, ranks)


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


def together(
    plan: Plan, shelves: Shelves, control: Control, goes_on: str, work: Callable[[Context], Iterator[Event]]
) -> Iterator[Event]:
    """The events of work that all processes of the plan do; the first of them yields them, the others none.

    Whatever goes wrong in one stops all, and `goes_on` says what to do then. StopAsked where one was asked to stop.
    """
    with joined(plan, control, goes_on) as ranks, within_memory(plan):
        events = work(context_of(plan, shelves, control, ranks))
        if ranks.first:
            yield from events
        else:
            deque(events, maxlen=0)


def sample(
    plan: Plan, shelves: Shelves, control: Control, facts: Facts, strength: float, places: Sequence[Path]
) -> Iterator[Event]:
    """Draw every prompt of the plan at this strength, into `places` in their order."""
    drawn = list[Path]()
    work = partial(_drawn, facts=facts, strength=strength, places=places, drawn=drawn)
    try:
        yield from together(plan, shelves, control, AGAIN, work)
    except StopAsked:
        if not launched.number():
            yield DrawingStopped(drawn=len(drawn), total=len(places), reason=control.reason)


def _drawn(
    context: Context, facts: Facts, strength: float, places: Sequence[Path], drawn: list[Path]
) -> Iterator[Event]:
    """The same in one process; `drawn` is what lies there so far."""
    settings, numbers, pairs = context.plan.settings.sampling, range(len(places)), lora_pairs.load(facts)
    told_of = yield from encoded(context)
    studio = (yield from opened(context, told_of, pairs)) if context.ranks.dealt(numbers) else None

    def make(number: int) -> bytes:
        assert studio is not None
        context.check()
        return preview.encoded(studio.draw(number, strength, settings.guidance))

    began = time.perf_counter()
    yield PhaseStarted(phase="draw", total=len(places))
    for number, picture in context.ranks.made(numbers, make):
        write_atomically(places[number], picture)
        drawn.append(places[number])
        yield from told(studio.base.products if studio else None)
        yield PictureDrawn(
            path=str(places[number]),
            prompt=settings.prompts[number],
            strength=strength,
            guidance=settings.guidance,
            seed=settings.seed + number,
        )
        yield PhaseProgress(phase="draw", done=len(drawn), note=settings.prompts[number])
    yield PhaseFinished(phase="draw", seconds=time.perf_counter() - began)
