"""One process that passes what several would: their shares of each batch, one after another.

It is what a run of several is compared with. One process with the whole batch multiplies larger matrices, whose sums
are rounded in another order.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from lorakit.engine.ranks import Drawn, Ranks
from lorakit.order import Turn, share


class Shares(Ranks):
    """The only process of a run, in place of `shares` processes; each one's gradient is made by itself, in `gradient`.

    They are added in the order of the processes, which of two is that of any sum.
    """

    def __init__(self, shares: int, gradient: Tensor) -> None:
        self._shares, self._gradient = shares, gradient
        self._made: list[Tensor] = []

    def own(self, turns: Iterable[Turn]) -> Iterator[Turn]:
        """Every share of these batches that is not empty, those of one process after another."""
        whole = list(turns)
        self._made.clear()
        for number in range(self._shares):
            yield from (part for part in self._parts(whole, number) if part.samples)
            self._made.append(self._gradient.clone())
            self._gradient.zero_()

    def settled(
        self, gradient: Tensor, losses: Sequence[Tensor], drawn: Sequence[Drawn], turns: Sequence[Turn]
    ) -> tuple[Sequence[Tensor], Sequence[Drawn]]:
        """The sum of the gradients, and every pass's loss and draw in the order of `turns`."""
        gradient.copy_(self._made[0])
        for one in self._made[1:]:
            gradient.add_(one)
        places = self._places(turns)
        order = sorted(range(len(places)), key=places.__getitem__)
        return [torch.cat(list(losses))[order]], [drawn[place] for place in order]

    def _parts(self, turns: Sequence[Turn], number: int) -> list[Turn]:
        return [share(turn, number, self._shares) for turn in turns]

    def _places(self, turns: Sequence[Turn]) -> list[int]:
        """The numbers of the passes in the order in which they are made."""
        parts = (part for number in range(self._shares) for part in self._parts(turns, number))
        return [part.first_pass + place for part in parts for place in range(len(part.samples))]


def arrange(shares: int) -> None:
    """Let the runs of this process, which are of one GPU, pass what so many would."""
    from lorakit.engine.run import Run

    own = Run._trainer

    def arranged(self: Run, *arguments: Any) -> Any:
        trainer = own(self, *arguments)
        trainer.ranks = Shares(shares, trainer.adapter.grad)
        return trainer

    Run._trainer = arranged  # type: ignore[method-assign]


def add_in_order() -> None:
    """Let this process add what all have one after another, where torch adds parts of it in other orders."""
    import torch.distributed as dist

    def all_reduce(tensor: Tensor, **named: Any) -> None:
        found = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
        dist.all_gather(found, tensor)
        tensor.copy_(found[0])
        for one in found[1:]:
            tensor.add_(one)

    dist.all_reduce = all_reduce
