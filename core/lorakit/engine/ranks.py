"""What a process shares with others that train the same adapter: batches, work, one sum of the gradient.

Everything here is true of one process alone, which shares with nobody; `lorakit.engine.crew` has one of several.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from lorakit.order import Turn

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

Thing = TypeVar("Thing")
Result = TypeVar("Result")
Drawn = tuple[float, float]
"""A pass's draw, and the noise level that was made of it."""


class Ranks:
    """This process, `number` of `count` that train together; the first of them writes and tells."""

    number: int = 0
    count: int = 1
    device: torch.device | None = None
    """Its own device, where that is not for the plan to say."""
    lockstep: bool = False
    """Whether all pass through the model together, because each holds a part of its weights."""
    mesh: DeviceMesh | None = None
    """Between whom the weights are shared out, where they are."""

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and tells."""
        return self.number == 0

    def check(self) -> None:
        """Tell the others that this process is alive; raises where one of them has left."""

    def begin_pass(self) -> None:
        """Say that a pass through the model begins here; where all pass together, it begins for all or for none."""

    def own(self, turns: Iterable[Turn]) -> Iterator[Turn]:
        """What of these batches is for this process to pass through the model."""
        yield from turns

    def passed(self, things: Sequence[Thing]) -> Sequence[tuple[Thing, bool]]:
        """Those of the things that this process passes through the model, and whether its answer for each counts."""
        return [(thing, True) for thing in things]

    def settled(
        self, gradient: Tensor, losses: Sequence[Tensor], drawn: Sequence[Drawn], turns: Sequence[Turn]
    ) -> tuple[Sequence[Tensor], Sequence[Drawn]]:
        """The gradient summed in place over all processes, and every pass's loss and draw in the order of `turns`."""
        return losses, drawn

    def dealt(self, things: Sequence[Thing]) -> Sequence[Thing]:
        """Those of the things that this process sees to."""
        return things

    def summed(self, values: Tensor) -> Tensor:
        """Values of which each process knows some and has 0 for the others', put together."""
        return values

    def joint(self, work: Callable[[], Result]) -> Result:
        """What work answers that all processes do at once; where it fails, who was lost."""
        return work()

    def meet(self) -> None:
        """Wait until every process has come so far."""

    def said(self, value: Any) -> Any:
        """What the first process says, a JSON value, wherever it is asked."""
        return value

    def made(self, things: Sequence[Thing], make: Callable[[Thing], bytes]) -> Iterator[tuple[Thing, bytes]]:
        """What is made of each thing, in order, dealt out among the processes; only the first is given it."""
        return ((thing, make(thing)) for thing in things)

    def leave(self, error: BaseException | None, reason: str) -> None:
        """Tell the others why this process goes no further: an error, or the reason of a stop."""


ALONE = Ranks()
