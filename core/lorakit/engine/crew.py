"""One process of several that train together, on torch's own collectives; torchrun starts them.

Before anything is summed, every process says in the store that it has come so far, and waits there for the others: that
can be looked away from, so an error elsewhere, a stop and a silence are noticed. Nothing is changed by an update that
does not come to its end everywhere.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict
from datetime import timedelta
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import PrefixStore, Store  # type: ignore[attr-defined]
from torch.distributed.device_mesh import DeviceMesh

from lorakit import launched
from lorakit.control import Control
from lorakit.engine.causes import GOES_ON, Cause, echo, lost, reached, stalled
from lorakit.engine.phases import StopAsked
from lorakit.engine.ranks import Drawn, Ranks, Result, Thing
from lorakit.errors import LorakitError, StallError
from lorakit.order import Turn, company, share

SLICE = 1.0
"""Seconds that a process waits before it looks around."""
PAUSES = (0.0002, 0.02)
"""Seconds between two looks at a note that is waited for: the first, and the longest."""
GONE = 60.0
"""Seconds without a beat, which a thread of its own gives every second, after which a process is taken for lost."""
ANSWER = 5.0
"""Seconds for those who wait for a silent process to say so."""


class Crew(Ranks):
    """This process among several; `store` is where they leave notes for one another."""

    device: torch.device

    def __init__(
        self,
        store: Store,
        number: int,
        count: int,
        device: torch.device,
        timeout: float,
        control: Control,
        *,
        lockstep: bool = False,
        goes_on: str = GOES_ON,
    ) -> None:
        self.number, self.count, self.device, self.lockstep = number, count, device, lockstep
        self._store, self._timeout, self._control, self._goes_on = store, timeout, control, goes_on
        self._group: dist.ProcessGroup | None = None  # of the devices, where they are GPUs
        self._looked = 0.0
        self._beats: dict[int, tuple[int, float]] = {}  # of those that this process looks after, and since when
        self._done = threading.Event()
        self._notes = self._meetings = 0  # so far

    def connect(self) -> None:
        """Open the connections, to all others; collectives of the host go by gloo, those of GPUs by NCCL."""
        group = PrefixStore("group", self._store)
        limit = timedelta(seconds=self._timeout)
        dist.init_process_group("gloo", store=group, rank=self.number, world_size=self.count, timeout=limit)
        if self.device.type == "cuda":
            self._group = dist.new_group(backend="nccl", timeout=limit)
        if self.lockstep:
            everybody = self._group or dist.distributed_c10d._get_default_group()
            self.mesh = DeviceMesh.from_group(everybody, self.device.type)

    # -- an update -----------------------------------------------------------------------------------------------

    def begin_pass(self) -> None:
        """Raises where one of the others has left; where all pass together, waits until all are here."""
        self.check()
        if self.lockstep:
            self.meet()

    def own(self, turns: Iterable[Turn]) -> Iterator[Turn]:
        """This process' share of each batch; one of which it has nothing is left out, or passed in company."""
        for turn in turns:
            part = share(turn, self.number, self.count)
            if part.samples:
                yield part
            elif self.lockstep:
                yield company(turn)

    def settled(
        self, gradient: Tensor, losses: Sequence[Tensor], drawn: Sequence[Drawn], turns: Sequence[Turn]
    ) -> tuple[Sequence[Tensor], Sequence[Drawn]]:
        """The gradient summed in place over all processes, and every pass's loss and draw in the order of `turns`."""
        places, total = list[int](), 0
        for turn in turns:
            part = share(turn, self.number, self.count)
            start = total + part.first_pass - turn.first_pass
            places += range(start, start + len(part.samples))
            total += len(turn.samples)
        told = torch.zeros(total, 2, dtype=torch.float64)
        found = torch.zeros(total, device=gradient.device)
        if places:
            told[places] = torch.tensor(drawn, dtype=torch.float64)
            found[places] = torch.cat(list(losses))
        self.meet()  # from here on everybody is here, and well
        self._sum(told)
        self._sum(gradient)
        self._sum(found)
        return [found], [(one, level) for one, level in told.tolist()]

    # -- other work ----------------------------------------------------------------------------------------------

    def dealt(self, things: Sequence[Thing]) -> Sequence[Thing]:
        """Every `count`th of the things."""
        return things[self.number :: self.count]

    def passed(self, things: Sequence[Thing]) -> Sequence[tuple[Thing, bool]]:
        """Every `count`th of the things, and where all pass together one more in company of those who have one more."""
        own = [(thing, True) for thing in self.dealt(things)]
        alone = self.lockstep and len(own) * self.count < len(things)
        return [*own, (things[0], False)] if alone else own

    def summed(self, values: Tensor) -> Tensor:
        """Values of which each process knows some and has 0 for the others', put together on the CPU."""
        held = values.detach().cpu().contiguous().clone()
        self.meet()
        self._sum(held)
        return held

    def meet(self) -> None:
        """Wait until every process has come so far; one that leaves meanwhile does not keep the others waiting.

        Whoever is here last may be at the next thing already, which cannot be waited for without the others: so it is
        done with them, whatever happened here.
        """
        self._meetings += 1
        everybody = self._meetings * self.count
        with reached(self._goes_on):
            self._store.add("met", 1)
        try:
            self._patiently(lambda: self._store.add("met", 0) >= everybody)
        except BaseException:
            with reached(self._goes_on):
                if self._store.add("met", -1) < everybody - 1:
                    raise
                self._store.add("met", 1)

    def said(self, value: Any) -> Any:
        """What the first process says, a JSON value, wherever it is asked."""
        key = f"note {self._notes}"
        self._notes += 1
        if self.first:
            with reached(self._goes_on):
                self._store.set(key, json.dumps(value))
            return value
        return json.loads(self._read(key))

    def told(self, facts: dict[str, Any]) -> list[dict[str, Any]]:
        """What every process says of itself, in order; the first thing that they say at all."""
        with reached(self._goes_on):
            self._store.add(f"beat {self.number}", 1)  # so that one that dies at once is missed too
            threading.Thread(target=self._beat, daemon=True).start()
            self._store.set(f"facts {self.number}", json.dumps(facts))
        return [json.loads(self._read(f"facts {number}")) for number in range(self.count)]

    def made(self, things: Sequence[Thing], make: Callable[[Thing], bytes]) -> Iterator[tuple[Thing, bytes]]:
        """What is made of each thing, in order, dealt out among the processes; only the first is given it."""
        batch = self._notes
        self._notes += 1
        for begin in range(0, len(things), self.count):
            some = things[begin : begin + self.count]
            mine = self.number < len(some)
            if mine or self.lockstep:
                self.begin_pass()
                made = make(some[self.number if mine else 0])
            if mine and not self.first:
                with reached(self._goes_on):
                    self._store.set(f"made {batch} {begin + self.number}", made)  # type: ignore[arg-type]  # bytes too
            if self.first:
                yield some[0], made
                for place, thing in enumerate(some[1:], begin + 1):
                    yield thing, self._read(f"made {batch} {place}")
                    self._store.delete_key(f"made {batch} {place}")
        if things:
            self.meet()  # whoever is done stays, for one that has gone is taken for lost

    # -- waiting -------------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Tell the others once a second that this process is alive; raises where one of them has left."""
        if self._control.stopping or time.monotonic() - self._looked >= SLICE:
            self._looked = time.monotonic()
            with reached(self._goes_on):
                self._store.add("life", 1)
            self._look()

    def _sum(self, tensor: Tensor) -> None:
        """Sum in place over all processes, once they have met."""
        self.joint(lambda: dist.all_reduce(tensor, group=self._group if tensor.device.type == "cuda" else None))

    def joint(self, work: Callable[[], Result]) -> Result:
        """What work answers that all processes do at once; where their connection breaks, who was lost, and why."""
        try:
            return work()
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            self._broken(str(error).splitlines()[0].split("] ", 1)[-1].split(". ")[0])

    def _broken(self, why: str) -> NoReturn:
        """Raise what ended the connection: somebody may have said why it left, and one that is lost is missed soon."""
        until = time.monotonic() + GONE + ANSWER
        self._patiently(lambda: time.monotonic() > until)
        raise lost("one of the processes", why, self._goes_on)

    def _read(self, key: str) -> bytes:
        self._patiently(lambda: self._store.check([key]))
        with reached(self._goes_on):
            found: bytes = self._store.get(key)
        return found

    def _patiently(self, done: Callable[[], bool]) -> None:
        """Wait until something is done, as long as nobody leaves, is lost, or is silent for too long."""
        seen, since, looked, pause = -1, time.monotonic(), time.monotonic(), PAUSES[0]
        with reached(self._goes_on):
            while not done():
                time.sleep(pause)
                pause, now = min(2 * pause, PAUSES[1]), time.monotonic()
                if now - looked < SLICE:
                    continue
                self._look()
                self._listen(now)
                looked, life = now, self._store.add("life", 0)
                if life != seen:
                    seen, since = life, now
                elif now - since > self._timeout:
                    raise self._stalled()

    def _beat(self) -> None:
        """Once a second, as long as this process is there."""
        with suppress(RuntimeError):
            while not self._done.wait(SLICE):
                self._store.add(f"beat {self.number}", 1)
                if self._control.paused:  # it stands still as it was asked to
                    self._store.add("life", 1)

    def _listen(self, now: float) -> None:
        """Raise where one is lost: the first process listens to all others, and they to the first."""
        for other in range(1, self.count) if self.first else (0,):
            beat = self._store.add(f"beat {other}", 0)
            known, since = self._beats.get(other, (-1, now))
            self._beats[other] = (beat, since if beat == known else now)
            if beat and now - self._beats[other][1] > GONE:  # one that never came is waited for as a silent one is
                why = f"nothing came from it for {GONE:g} s"
                raise lost(f"process {other} on {self._host(other)}", why, self._goes_on)

    def _stalled(self) -> StallError:
        """Who does not answer while all others wait."""
        self._store.set(f"waits {self.number}", "")
        until, silent = time.monotonic() + ANSWER, list(range(self.count))
        while silent and time.monotonic() < until:
            time.sleep(PAUSES[1])
            silent = [one for one in silent if not self._store.check([f"waits {one}"])]
        told = ", ".join(f"{one} on {self._host(one)}" for one in silent) or "the connection"
        return stalled(f"process {told}", self._timeout, self._goes_on)

    def _host(self, number: int) -> str:
        key = f"facts {number}"
        return str(json.loads(self._store.get(key))["host"]) if self._store.check([key]) else "a host unknown"

    # -- leaving -------------------------------------------------------------------------------------------------

    def leave(self, error: BaseException | None, reason: str) -> None:
        """Tell the others why this process goes no further, unless somebody left before."""
        cause = Cause.of(self.number, error, reason)
        with suppress(RuntimeError):
            self._store.compare_set("left", "", json.dumps(asdict(cause)))

    def part(self) -> None:
        """Let the others read why this process leaves, where they read it from this process."""
        self._done.set()
        with suppress(RuntimeError):
            gone, until = self._store.add("gone", 1), time.monotonic() + ANSWER
            while self.first and not launched.agent() and gone < self.count and time.monotonic() < until:
                time.sleep(PAUSES[1])
                gone = self._store.add("gone", 0)

    def blamed(self, error: Exception) -> Exception:
        """The error itself where it was the first of all processes, else the first one as it is told elsewhere."""
        with suppress(LorakitError):
            cause = self._cause()
            if cause and cause.by != self.number:
                return echo(cause)
        return error

    def _look(self) -> None:
        """Raise where somebody has left, or asked to stop; what failed elsewhere comes before a stop that it led to."""
        cause = self._cause()
        if cause and not cause.stop and cause.by != self.number:
            raise echo(cause)
        if cause and cause.by != self.number:
            self._control.stop(cause.what)
        if self._control.stopping:
            raise StopAsked

    def _cause(self) -> Cause | None:
        with reached(self._goes_on):
            return Cause(**json.loads(self._store.get("left"))) if self._store.check(["left"]) else None
