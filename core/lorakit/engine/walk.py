"""Passes through a denoiser that halt at every block, so that blocks can be loaded, compared and freed in turn.

What lies between the blocks is the model's own forward, whatever it does there; each pass runs on a thread of its own,
and only one of them moves at a time.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any

import torch
from torch import Tensor, nn

Pass = Callable[[], Tensor]


@dataclass(frozen=True, slots=True)
class Halt:
    """Where a pass stands: what the block with this number was called with."""

    block: int
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]


class _Abandoned(BaseException):
    """Ends a pass that nobody will go on with."""


class Walk:
    """A pass on its own thread; `halt` is where it stands, and None once `answer` is known."""

    def __init__(self, work: Pass, here: threading.local) -> None:
        self.halt: Halt | None = None
        self.answer: Tensor | None = None
        self._work, self._here = work, here
        self._outward: SimpleQueue[Halt | Tensor | BaseException] = SimpleQueue()
        self._inward: SimpleQueue[Any] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        self._wait()

    def go_on(self, output: Any) -> None:
        """Let the pass go on to the next block with `output` as this one's answer."""
        self._inward.put(output)
        self._wait()

    def close(self) -> None:
        """End the pass, wherever it stands."""
        if self._thread.is_alive():
            self._inward.put(_Abandoned())
            self._thread.join()

    def reach(self, halt: Halt) -> Any:
        """Called on the pass's thread by a block's stand-in: wait for the block's answer."""
        self._outward.put(halt)
        output = self._inward.get()
        if isinstance(output, _Abandoned):
            raise output
        return output

    def _run(self) -> None:
        self._here.walk = self
        try:
            with torch.no_grad():
                self._outward.put(self._work())
        except _Abandoned:
            pass
        except BaseException as error:  # raised again where the walk is waited for
            self._outward.put(error)

    def _wait(self) -> None:
        reached = self._outward.get()
        if isinstance(reached, BaseException):
            raise reached
        self.halt = reached if isinstance(reached, Halt) else None
        self.answer = reached if isinstance(reached, Tensor) else None


class _StandIn(nn.Module):
    """Takes a block's place and halts whoever comes by."""

    def __init__(self, number: int, here: threading.local) -> None:
        super().__init__()
        self._number, self._here = number, here

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the walk on this thread is told to answer."""
        walk: Walk = self._here.walk
        return walk.reach(Halt(self._number, args, kwargs))


class Walks:
    """Any number of passes through one model whose blocks, called `names`, are taken out of it."""

    def __init__(self, module: nn.Module, names: Sequence[str]) -> None:
        self._here = threading.local()
        for number, name in enumerate(names):
            module.set_submodule(name, _StandIn(number, self._here))
        self.all: list[Walk] = []

    def start(self, work: Pass) -> Walk:
        """Start a pass; it stands before the first block."""
        walk = Walk(work, self._here)
        self.all.append(walk)
        return walk

    def close(self) -> None:
        """End every pass."""
        for walk in self.all:
            walk.close()
