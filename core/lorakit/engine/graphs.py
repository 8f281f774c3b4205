"""Passes through the model captured as CUDA graphs: the device is given one thing to do where there were thousands.

A graph is the operations of one pass, forward and backward, at fixed places in memory; whatever the host computed on
the way is a constant of it. So a pass is captured for each *form* of what it is given: how its tensors lie, and all of
it that is no tensor. A later one of the same form is copied to where the captured one's tensors lie, and its gradients
are added where all gradients lie, in the adapter's flat buffer.
"""

from __future__ import annotations

import gc
import time
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from lorakit.engine.memory import is_exhausted
from lorakit.engine.preparing import Given
from lorakit.engine.sharing import PROCESS
from lorakit.engine.watching import Watch
from lorakit.errors import LorakitError, ModelError
from lorakit.events import Event, PassCaptured, Warned
from lorakit.words import count

WARM = 3
"""Passes of a form before it is captured: libraries get ready in the first ones, and the last is watched."""
FORMS = 16
"""Forms that are captured, the first to come so far: each graph takes memory."""

Work = Callable[[], Tensor]


class Recorder(Protocol):
    """What captures work on a device."""

    def warm(self, work: Work) -> Tensor:
        """What work answers that is not captured, made where others are."""

    def capture(self, work: Work) -> tuple[Tensor, Callable[[], None]]:
        """The tensor that will hold what work answers, and what replays it; nothing is computed before that."""


class Cuda:
    """Graphs of CUDA, which share one pool of memory: of one, nothing but its answer is wanted when another begins."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._pool = torch.cuda.graph_pool_handle()

    def warm(self, work: Work) -> Tensor:
        """As `Recorder` has it: on the stream that captures, which is not the usual one."""
        here = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(here)
        with torch.cuda.stream(self._stream):
            answer = work()
        here.wait_stream(self._stream)
        return answer

    def capture(self, work: Work) -> tuple[Tensor, Callable[[], None]]:
        """As `Recorder` has it."""
        graph, here = torch.cuda.CUDAGraph(), torch.cuda.current_stream(self._device)
        held = torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local")
        gc.collect()  # what still holds tensors of earlier passes, and is only found by the collector
        with PROCESS.alone(), torch.cuda.stream(here), held:  # back on this stream, whatever fails
            answer = work()
        return answer, graph.replay


def recorder_for(device: torch.device) -> Recorder | None:
    """What captures on a device; None where nothing does."""
    return Cuda(device) if device.type == "cuda" else None


@dataclass(slots=True)
class Captured:
    """A captured pass: where the tensors that it is given lie, what replays it, and its answer.

    `outside` is all other memory that it reads and writes, which stays in its place as long as this does.
    """

    places: list[Tensor]
    replay: Callable[[], None]
    answer: Tensor
    outside: Sequence[torch.UntypedStorage]

    @torch.no_grad()
    def passed(self, given: list[Tensor]) -> Tensor:
        """What the pass answers to other tensors of its form."""
        torch._foreach_copy_(self.places, given)
        self.replay()
        return self.answer.clone()  # the next pass writes over it


@dataclass(slots=True)
class Form:
    """What became of the passes of one form, called `name`: how many went the plain way, and why all do, if so."""

    name: str
    plain: int = 0
    replayed: int = 0
    obstacle: str = ""
    captured: Captured | None = None


@dataclass(slots=True)
class Graphs:
    """Passes that `compute` makes, forward and backward, replayed wherever one of their form was captured."""

    compute: Callable[[Given], Tensor]
    recorder: Recorder
    device: torch.device
    forms: dict[Hashable, Form] = field(default_factory=dict)
    _news: list[Event] = field(default_factory=list)
    _told: set[str] = field(default_factory=set)

    @property
    def captured(self) -> int:
        """How many forms are captured."""
        return sum(one.captured is not None for one in self.forms.values())

    def passed(self, given: Given) -> Tensor:
        """What `compute` answers; gradients are added where it adds them."""
        found: list[Tensor] = []
        key = taken_apart(given, found)
        form = self.forms.get(key)
        if form is None:
            form = self.forms[key] = Form(str(given))
            if any(one.requires_grad for one in found):
                self._refuse(form, "gradients flow on through what it is given")
        if form.captured is None and form.plain >= WARM and not form.obstacle:
            self._capture(form, given, found)
        if form.captured is None:
            return self._plain(form, given)
        form.replayed += 1
        return form.captured.passed(found)

    def _plain(self, form: Form, given: Given) -> Tensor:
        """A pass that is not replayed; the last before a form is captured is watched."""
        form.plain += 1
        if form.obstacle:
            return self.compute(given)
        work = partial(self.compute, given)
        if form.plain < WARM:
            return self.recorder.warm(work)
        with Watch(self.device) as watch:
            answer = self.recorder.warm(work)
        self._refuse(form, *watch.obstacles)
        return answer

    def _capture(self, form: Form, given: Given, found: list[Tensor]) -> None:
        """Capture the pass that a form's tensors are given to, which computes nothing yet."""
        if self.captured == FORMS:
            self._refuse(form, f"{FORMS} forms are captured, and each takes memory")
            return
        began = time.perf_counter()
        places = [one.detach().clone() for one in found]
        work = partial(self.compute, put_together(given, iter(places)))
        try:
            with Watch(self.device) as watch:
                answer, replay = self.recorder.capture(work)
        except Exception as error:
            if isinstance(error, LorakitError) or is_exhausted(error):
                raise
            raise _failed(form, error) from error
        self._refuse(form, *watch.obstacles)
        if not form.obstacle:
            form.captured = Captured(places, replay, answer, tuple(watch.outside.values()))
            seconds = time.perf_counter() - began
            self._news.append(PassCaptured(form=form.name, graphs=self.captured, seconds=seconds))

    def _refuse(self, form: Form, *obstacles: str) -> None:
        """Let a form go the plain way, where something stands in the way; each reason is told once."""
        if not obstacles:
            return
        form.obstacle = obstacles[0]
        if form.obstacle not in self._told:
            self._told.add(form.obstacle)
            self._news.append(Warned(message=f"no graph is captured of passes of {form.name}: {form.obstacle}"))

    def news(self) -> Iterator[Event]:
        """What was captured, and what was not and why, since it was last asked."""
        news, self._news = self._news, []
        yield from news

    def __str__(self) -> str:
        forms = self.forms.values()
        replayed, plain = sum(one.replayed for one in forms), Counter[str]()
        for one in forms:
            plain[one.obstacle or "before they were captured"] += one.plain
        told = f"{replayed} of {replayed + plain.total()} passes replayed, by {count(self.captured, 'graph')}"
        return "; ".join([told, *(f"{number} not: {why}" for why, number in plain.most_common() if number)])


def _failed(form: Form, error: Exception) -> ModelError:
    return ModelError(
        f"a pass of {form.name} cannot be captured as a CUDA graph",
        where="speed.graphs",
        why=f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), '')[:200]}",
        fix="Set speed.graphs = 'off': the run goes on from its last checkpoint with it.",
    )


def taken_apart(value: Any, found: list[Tensor]) -> Hashable:
    """The form of a value: all of it that is no tensor, and how its tensors lie, which are added to `found`."""
    if isinstance(value, Tensor):
        found.append(value)
        return tuple(value.shape), value.stride(), value.dtype, value.device
    if isinstance(value, tuple):
        return tuple(taken_apart(one, found) for one in value)
    if is_dataclass(value):
        return tuple(taken_apart(getattr(value, one.name), found) for one in fields(value))
    return type(value), value


def put_together(value: Any, tensors: Iterator[Tensor]) -> Any:
    """The value with other tensors in it, in the order in which `taken_apart` finds them."""
    if isinstance(value, Tensor):
        return next(tensors)
    if isinstance(value, tuple):
        return tuple(put_together(one, tensors) for one in value)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{one.name: put_together(getattr(value, one.name), tensors) for one in fields(value)})
    return value
