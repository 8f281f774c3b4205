"""What was estimated, held against the first updates of a run."""

from __future__ import annotations

import statistics
from collections.abc import Iterator

import torch

from lorakit.engine.measuring import device_name
from lorakit.estimate.make import estimate
from lorakit.estimate.rates import of_device
from lorakit.events import EstimateChecked, Event, UpdateFinished
from lorakit.family import Family
from lorakit.plan import Plan
from lorakit.registry import Shelves

UPDATES = 20
WARMING = 2  # first updates that are left out: they compile, allocate and read


class Checking:
    """Follows the first updates of a run, and says once how they compare with the estimate."""

    def __init__(self, plan: Plan, family: Family, shelves: Shelves, device: torch.device) -> None:
        self._plan, self._family, self._shelves, self._device = plan, family, shelves, device
        self._seconds: list[float] = []

    def after(self, update: UpdateFinished) -> Iterator[Event]:
        """What there is to say after an update: something after the twentieth, and nothing else."""
        if len(self._seconds) == UPDATES:
            return  # it is said, and nothing more is kept
        self._seconds.append(update.seconds)
        if len(self._seconds) == UPDATES:
            yield self._checked(update)

    def _checked(self, update: UpdateFinished) -> EstimateChecked:
        rates = of_device(device_name(self._device))
        made = estimate(self._plan, self._family, self._shelves, rates)
        chosen, on_gpu = made.chosen if made else None, self._device.type == "cuda"
        # a GPU's figure is what torch allocated, which leaves the context out; a CPU's is the whole process
        expected = None if chosen is None or (rates is None and not on_gpu) else chosen.peak - chosen.context * on_gpu
        return EstimateChecked(
            update=update.update,
            seconds=statistics.median(self._seconds[WARMING:]),
            expected_seconds=made.duration.update if made and made.duration else None,
            memory=update.memory,
            expected_memory=expected,
            source=rates.source if rates else "",
        )
