"""Blocks that forget their activations and compute them again in the backward pass: all of them, or as few as must be.

The last blocks are spared first, because what they keep is the first to be used and freed. Blocks compute the same
twice, so how many do changes no result, and may change while training goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from torch import is_grad_enabled, nn
from torch.utils.checkpoint import checkpoint

from lorakit.estimate.space import fitting, needed
from lorakit.plan import Plan
from lorakit.sizes import Size
from lorakit.words import count

MARGIN = 0.08
"""Share of the free memory that stays free: allocators lose some of it to pieces that fit nothing."""
WARMING = 3
"""Updates before memory is judged: the first ones make the optimizer's state and the kernels' workspaces."""


class Recomputing:
    """Blocks of which the first `count` recompute their activations."""

    def __init__(self, blocks: Sequence[nn.Module], keeps_random_state: bool, count: int | None = None) -> None:
        self.count, self.blocks = len(blocks) if count is None else min(count, len(blocks)), len(blocks)
        for number, block in enumerate(blocks):
            block.forward = partial(self._forward, number, block.forward, keeps_random_state)

    def _forward(
        self, number: int, forward: Callable[..., Any], keeps_random_state: bool, *args: Any, **kwargs: Any
    ) -> Any:
        if number >= self.count or not is_grad_enabled():
            return forward(*args, **kwargs)
        return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=keeps_random_state, **kwargs)

    def __str__(self) -> str:
        return f"{self.count} of {count(self.blocks, 'block')} recompute"


class Fit:
    """Chooses how many blocks recompute: by the estimate and free memory, corrected once by the first updates.

    `room` are the bytes that are free beside the `held` ones, which are in use before the first update.
    """

    def __init__(self, plan: Plan, size: Size, recomputing: Recomputing, room: float, held: float) -> None:
        self._plan, self._size, self._recomputing = plan, size, recomputing
        self._room, self._held = room * (1 - MARGIN), held
        self._judged, self._seen = False, set[object]()
        recomputing.count = fitting(plan, size, self._room)

    @property
    def said(self) -> str:
        """What was chosen, in words."""
        return f"{self._recomputing}: {self._room / 1e9:.1f} GB are free for activations"

    def after(self, update: int, kinds: Sequence[object], most: float) -> str:
        """What changed after an update with batches of these kinds, in words; nothing where nothing did.

        Memory is judged once every kind of batch was seen; the measured need scales the estimate's.
        """
        self._seen.update(kinds)
        if self._judged or update < WARMING or len(self._seen) < len(self._plan.arithmetic.buckets):
            return ""
        self._judged = True
        before, expected = self._recomputing.count, needed(self._plan, self._size, self._recomputing.count)
        measured = max(1.0, most - self._held)
        self._recomputing.count = fitting(self._plan, self._size, self._room * expected / measured)
        if self._recomputing.count == before:
            return ""
        return f"{self._recomputing}, {before} before: a batch takes {measured / expected:.2f} of what was estimated"

    def exhausted(self) -> str:
        """All blocks recompute from now on, because memory ran out; what to say, or nothing where all did."""
        if self._recomputing.count == self._recomputing.blocks:
            return ""
        before, self._judged = self._recomputing.count, True
        self._recomputing.count = self._recomputing.blocks
        return f"memory ran out with {before} of {self._recomputing.blocks} blocks recomputing; now all do"
