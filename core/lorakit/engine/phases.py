"""What every phase of a run works with, and the events that it begins and ends with."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import TypeVar

import torch

from lorakit.control import Control
from lorakit.engine.cache import Cache
from lorakit.engine.parts import Source
from lorakit.engine.ranks import ALONE, Ranks
from lorakit.events import Event, Phase, PhaseFinished, PhaseProgress, PhaseStarted
from lorakit.family import Family
from lorakit.plan import Plan
from lorakit.registry import Shelves

Result = TypeVar("Result")
Work = Generator[Event, None, Result]


class StopAsked(Exception):  # noqa: N818  (no error: what was asked for)
    """Somebody asked the run to stop; what was done is kept."""


@dataclass(frozen=True, slots=True)
class Context:
    """What every phase works with."""

    plan: Plan
    family: Family
    shelves: Shelves
    source: Source
    cache: Cache
    device: torch.device
    control: Control
    ranks: Ranks = ALONE

    def check(self) -> None:
        """Raise StopAsked where somebody asked to stop, here or in another process of the run."""
        self.ranks.check()
        if self.control.stopping:
            raise StopAsked

    def begin_pass(self) -> None:
        """Begin a pass through the model, with all others where they pass together, unless somebody asked to stop."""
        self.check()
        self.ranks.begin_pass()


def phase(name: Phase, total: int, work: Iterator[str], note: Callable[[], str] = str) -> Iterator[Event]:
    """A phase's events: its start, one progress for each item that `work` yields, its end."""
    began = time.perf_counter()
    yield PhaseStarted(phase=name, total=total)
    for done, item in enumerate(work, 1):
        yield PhaseProgress(phase=name, done=done, note=item)
    yield PhaseFinished(phase=name, seconds=time.perf_counter() - began, note=note())
