"""A stand-in for CUDA graphs on the CPU: the operations of work, done again at the same places in memory.

As with a graph, capturing leaves no trace in what was there before, no line of Python runs again, numbers that the host
computed are constants, and only what is written to the captured tensors makes a difference.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from lorakit.engine.watching import tensors


class Tape(TorchDispatchMode):
    """Notes every operation, with what it was given and what it made."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, Any]] = []
        self._before: dict[int, tuple[Tensor, Tensor]] = {}
        self._made: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None) -> Any:
        kwargs = kwargs or {}
        for one in tensors((args, kwargs)):
            place = one.untyped_storage()._cdata
            if func._schema.is_mutable and place not in self._made and place not in self._before:
                with _disable_current_modes():
                    self._before[place] = (one, whole(one).clone())
        answer = func(*args, **kwargs)
        self._made |= {one.untyped_storage()._cdata for one in tensors(answer)}
        self.calls.append((func, args, kwargs, answer))
        return answer

    def undo(self) -> None:
        """Put back what lay, before, where something was written."""
        for one, was in self._before.values():
            whole(one).copy_(was)

    @torch.no_grad()
    def replay(self) -> None:
        for func, args, kwargs, answer in self.calls:
            for place, one in zip(tensors(answer), tensors(func(*args, **kwargs)), strict=True):
                if place.untyped_storage()._cdata != one.untyped_storage()._cdata:
                    place.copy_(one)


def whole(one: Tensor) -> Tensor:
    """All memory that a tensor is a part of."""
    size = one.untyped_storage().nbytes() // one.element_size()
    return torch.empty(0, dtype=one.dtype).set_(one.untyped_storage(), 0, (size,), (1,))


class Recorder:
    """Captures by tapes, which it keeps; `warmed` is how much work was not captured."""

    def __init__(self) -> None:
        self.warmed, self.tapes = 0, []

    def warm(self, work: Callable[[], Tensor]) -> Tensor:
        self.warmed += 1
        return work()

    def capture(self, work: Callable[[], Tensor]) -> tuple[Tensor, Callable[[], None]]:
        tape = Tape()
        with tape:
            answer = work()
        with torch.no_grad():
            tape.undo()
            answer.fill_(float("nan"))  # nothing is computed before the first replay
        self.tapes.append(tape)
        return answer, tape.replay
