"""The update: batches in, one step of the optimizer out."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor, nn

from lorakit.advice import loss_spikes
from lorakit.alarms import Pass
from lorakit.engine.adapter import Adapter
from lorakit.engine.checkpoint import State
from lorakit.engine.draws import seed_of
from lorakit.engine.graphs import Graphs
from lorakit.engine.modulation import Foresight, ModulationTable
from lorakit.engine.optimizers import learning_rate
from lorakit.engine.parts import Batch, Conditions, Denoiser, Text
from lorakit.engine.preparing import Batches, Given, Prepared, Samples
from lorakit.engine.ranks import ALONE, Ranks
from lorakit.engine.schedulers import Scheduler
from lorakit.engine.sharing import RANDOM
from lorakit.engine.unread import Arriving, Guard, Unread, waits
from lorakit.errors import NotFiniteError, RunError
from lorakit.order import Turn
from lorakit.plan import Plan

KNOWN = ("state", "param_groups")
"""What every optimizer's `state_dict` holds."""


@dataclass(frozen=True, slots=True)
class Step:
    """What update `update` did."""

    update: int
    loss: float
    grad_norm: float
    learning_rate: float
    passes: tuple[Pass, ...] = ()
    reach: float | None = None
    """The norm of the adapter's B halves before it, now and then."""


class Trainer:
    """The adapter, its optimizer and its running average, updated one step at a time."""

    def __init__(
        self,
        plan: Plan,
        denoiser: Denoiser,
        adapter: Adapter,
        scheduler: Scheduler,
        optimizer: torch.optim.Optimizer,
        patch: int,
        dtype: torch.dtype,
        conditions: Conditions = Text.collate,
        table: ModulationTable | None = None,
    ) -> None:
        self.plan, self.denoiser, self.adapter = plan, denoiser, adapter
        self.scheduler, self.optimizer = scheduler, optimizer
        self.average = adapter.flat.detach().clone() if plan.settings.train.ema else None
        self.describe: Callable[[int], str] = str  # a sample, in words, by its index
        self.ranks: Ranks = ALONE  # who else takes a share of every batch
        self.graphs: Graphs | None = None  # what passes of training are captured as, where they are
        self.updates = 0
        self._saw = False
        self.stepping = False  # while weights change, and what is in memory is neither before nor after an update
        self.dtype, self.device, self._table = dtype, adapter.flat.device, table
        self.batches = Batches(plan.settings, scheduler, patch, self.device, dtype, conditions)
        self._coming: dict[int, Turn] = {}  # what follows a batch, by its first pass
        self._foresight: Foresight[int] = Foresight((), {})
        self._drawn: list[tuple[float, float]] = []  # of the update under way
        late = plan.settings.speed.losses == "late" and waits(self.device)
        self.guard = Guard(optimizer, self.device) if late else None
        self._unread: deque[Unread] = deque()
        self._steps: deque[Step] = deque()  # of which nobody was told
        modules = (module for host in adapter.hosts.values() for module in host.modules())
        self._rounds = not type(optimizer).__module__.startswith("torch.optim")  # others may, and at random
        self.drops = adapter.dropout > 0 or any(isinstance(one, nn.Dropout) and one.p > 0 for one in modules)

    def update(self, turns: Sequence[Turn], samples: Samples) -> Step:
        """One update over `turns`, each picture's loss counting the same however they are batched."""
        self.start(turns, samples)
        return next(self.done())

    def start(self, turns: Sequence[Turn], samples: Samples) -> None:
        """One update, of which `done` says what it did.

        Where numbers are read late, the device may not have come to it yet, and nothing here waits for it.
        """
        pictures = sum(len(turn.samples) for turn in turns)
        self.adapter.train()
        self.adapter.grad.zero_()
        self._drawn.clear()
        losses: list[Tensor] = []
        for turn in self.ranks.own(turns):
            self.see(turn, samples)
            self.ranks.begin_pass()
            with self._seeded("dropout", turn.first_pass, self.drops):
                passed = self._passed(turn, samples, 0.0 if turn.borrowed else 1 / pictures)
            if not turn.borrowed:
                losses.append(passed)
            following = self._coming.get(turn.first_pass)
            if following:
                self.batches.fetch(following, samples)  # while the device is at work
        losses[:], self._drawn[:] = self.ranks.settled(self.adapter.grad, losses, self._drawn, turns)
        norm = torch.linalg.vector_norm(self.adapter.grad)
        numbers = torch.cat([*losses, norm[None], *self._reach()])
        rate = learning_rate(self.plan.settings.optimizer, self.updates + 1, self.plan.settings.train.updates)
        unread = Unread(self.updates + 1, turns, tuple(self._drawn), rate, Arriving(numbers))
        if self.guard is None:
            step = self._read(unread)
        else:
            self.guard.see(numbers)
        self._step(norm, rate)
        if self.guard is None:
            self._steps.append(step)
        else:
            self._unread.append(unread)

    def _passed(self, turn: Turn, samples: Samples, share: float) -> Tensor:
        """The loss of each picture of a batch, (B,), of whose gradients so much is added to the adapter's."""
        if self.graphs is not None:
            shown = self._shown(turn, samples)
            factors, answers = torch.full(shown.t.shape, share, device=self.device), self._foresight.of(turn.first_pass)
            return self.graphs.passed(replace(self._given(shown), share=factors, answers=answers))
        loss = self.loss(turn, samples)
        loss.backward(torch.full_like(loss, share))  # type: ignore[no-untyped-call]
        return loss.detach()

    def compute(self, given: Given) -> Tensor:
        """A pass forward and backward: the loss of each picture, (B,)."""
        with self._foresight.answering(given.answers):
            loss = self._error(given)
            loss.backward(given.share)  # type: ignore[no-untyped-call]
        return loss.detach()

    def _step(self, norm: Tensor, rate: float) -> None:
        """Shorten the gradient, if it is too long, and move the weights."""
        limit = self.plan.settings.train.max_grad_norm
        if limit:
            self.adapter.grad.mul_((limit / (norm + 1e-6)).clamp(max=1.0))
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["share"]
        self.stepping = True
        with self._seeded("optimizer", self.updates, self._rounds):
            self.optimizer.step()
        self.updates += 1
        self._follow()
        self.stepping = False

    def done(self, lag: int = 0) -> Iterator[Step]:
        """What updates did that nobody was told of, in order, all but the last `lag`.

        NotFiniteError where one had numbers that are not finite: it changed nothing, and neither did those after it.
        """
        while len(self._steps) + len(self._unread) > lag:
            if not self._steps:
                self._settle_next()
            yield self._steps.popleft()

    def settle(self) -> None:
        """Wait until it is known that every update had finite numbers; NotFiniteError where one had not."""
        while self._unread:
            self._settle_next()

    def _settle_next(self) -> None:
        unread = self._unread.popleft()
        try:
            self._steps.append(self._read(unread))
        except NotFiniteError:
            self._unread.clear()
            self.updates = unread.update - 1
            raise

    def _read(self, unread: Unread) -> Step:
        """What an update did, once the device has come to it."""
        told = unread.numbers.read()
        shown = [index for turn in unread.turns for index in turn.samples]
        together = zip(shown, unread.drawn, told, strict=False)  # norms stand after the losses
        passes = tuple(Pass(sample, *drawn, value) for sample, drawn, value in together)
        pictures = len(shown)
        average, length, reach = sum(told[:pictures]) / pictures, told[pictures], told[pictures + 1 :]
        self._check(unread.update, average, length, passes)
        return Step(unread.update, average, length, unread.learning_rate, passes, reach[0] if reach else None)

    def _reach(self) -> list[Tensor]:
        """The norm of the adapter's B halves, (1,), after 1, 2, 4, 8 updates and so on, and each hundredth."""
        if not self.updates or (self.updates.bit_count() > 1 and self.updates % 100):
            return []
        halves = [layer.lora_B.detach() for layer in self.adapter.layers.values()]
        return [torch.stack(torch._foreach_norm(halves)).norm()[None]]

    def foresee(self, updates: Sequence[Sequence[Turn]], samples: Samples) -> None:
        """Know which updates come, and work out ahead what the modulation layers answer in them."""
        own = [turn for turns in updates for turn in self.ranks.own(turns)]
        self._coming = {turn.first_pass: following for turn, following in pairwise(own)}
        if self._table is not None:
            self._foresight = self.foreseen((turn.first_pass, *self.batches.condition(turn, samples)) for turn in own)

    @torch.no_grad()
    def foreseen(self, told: Iterable[tuple[int, Tensor, Batch]]) -> Foresight[int]:
        """What the modulation layers answer, by key, at noise levels to batches, which are asked for one by one."""
        if self._table is None:
            return Foresight((), {})
        return self._table.foresee({key: self.denoiser.condition(t, about) for key, t, about in told})

    @torch.no_grad()
    def see(self, turn: Turn, samples: Samples) -> None:
        """Let a fused adapter see, once, which layers are given the same input, by a batch that teaches nothing.

        From then on they answer together. A run that goes on would otherwise round its first update as no other.
        """
        if self._saw or not self.adapter.fused:
            return
        self._saw = True
        self.adapter.train()
        self.ranks.begin_pass()
        with self._seeded("dropout", turn.first_pass, self.drops):
            self.loss(turn, samples)
        self._drawn.clear()
        self.adapter.train()

    def pass_through(self, turn: Turn, samples: Samples) -> None:
        """A batch forward and backward that leaves nothing behind, in the mode of training."""
        self.adapter.train()
        self.ranks.begin_pass()
        with self._seeded("dropout", turn.first_pass, self.drops):
            self.loss(turn, samples).sum().backward()  # type: ignore[no-untyped-call]
        self.adapter.grad.zero_()
        self._drawn.clear()

    def loss(self, turn: Turn, samples: Samples) -> Tensor:
        """The weighted squared error of each picture of a batch, (B,), in fp32."""
        with self._foresight.at(turn.first_pass):
            return self.score(self._shown(turn, samples))

    def _shown(self, turn: Turn, samples: Samples) -> Prepared:
        """A batch at its draws, which are noted."""
        shown = self.batches.of(turn, samples)
        self._drawn += () if turn.borrowed else shown.drawn
        return shown

    def score(self, shown: Prepared) -> Tensor:
        """The weighted squared error of each picture of a batch that is prepared, (B,), in fp32."""
        return self._error(self._given(shown))

    def _given(self, shown: Prepared) -> Given:
        """What the objective makes of a batch, so that nothing of it is in a pass that is captured."""
        noisy = self.scheduler.mix(shown.clean, shown.noise, shown.t).to(self.dtype)
        target = self.scheduler.target(shown.clean, shown.noise, shown.t)
        return Given(noisy, shown.t, shown.about, target, self.scheduler.weight(shown.t))

    def _error(self, given: Given) -> Tensor:
        answer = self.denoiser.predict(given.noisy, given.t, given.about)
        error = (answer.float() - given.target) ** 2
        return error.flatten(1).mean(1) * given.weight

    @contextmanager
    def _seeded(self, what: str, number: int, needed: bool = True) -> Iterator[None]:
        """For a while, torch's own generators seeded by a number: they draw what dropout drops."""
        if not needed:
            yield
            return
        devices = [self.device] if self.device.type == "cuda" else []
        with RANDOM, torch.random.fork_rng(devices):
            seed = seed_of(what, self.plan.settings.seed, number)
            torch.default_generator.manual_seed(seed)  # torch.manual_seed would take longer than an optimizer's step
            if devices:
                torch.cuda.manual_seed(seed)
            yield

    def state(self) -> State:
        """Everything that training goes on from; NotFiniteError where an update was spoiled that nobody has read."""
        self.settle()
        held = [dict(self.optimizer.state.get(part.weights, {})) for part in self.adapter.parts]
        groups = [{name: group[name] for name in group if name != "params"} for group in self.optimizer.param_groups]
        more = {name: value for name, value in self.optimizer.state_dict().items() if name not in KNOWN}
        return State(self.updates, self.adapter.flat.detach(), self.average, held, groups, more)

    def restore(self, state: State) -> None:
        """Go on from `state`."""
        if state.adapter.shape != self.adapter.flat.shape or len(state.optimizer) != len(self.adapter.parts):
            raise RunError(
                f"the checkpoint holds {state.adapter.numel()} numbers, this adapter {self.adapter.flat.numel()}",
                fix="It belongs to another run; remove it.",
            )
        self.updates = state.update
        self.adapter.flat.data.copy_(state.adapter)
        if self.average is not None and state.average is not None:
            self.average.copy_(state.average)
        if state.more:
            self.optimizer.load_state_dict({**self.optimizer.state_dict(), **state.more})
        for group, kept in zip(self.optimizer.param_groups, state.groups, strict=True):
            group.update(kept)
        for part, held in zip(self.adapter.parts, state.optimizer, strict=True):
            if held:
                self.optimizer.state[part.weights] = dict(held)

    def _follow(self) -> None:
        """Let the running average follow the weights; it starts short and lengthens to the planned decay."""
        if self.average is not None:
            decay = min(self.plan.settings.train.ema, (1 + self.updates) / (10 + self.updates))
            weight = 1 - decay if self.guard is None else (1 - decay) * (1 - self.guard.spoiled)
            self.average.lerp_(self.adapter.flat.detach(), weight)

    def _check(self, update: int, loss: float, norm: float, passes: Sequence[Pass]) -> None:
        if math.isfinite(loss) and math.isfinite(norm):
            return
        guilty = [one for one in passes if not math.isfinite(one.loss)] or passes
        shown = sorted({f"{self.describe(one.sample)} at noise level {one.level:.4g}" for one in guilty})
        raise NotFiniteError(
            f"the loss or gradient of update {update} is not a finite number (loss {loss}, gradient {norm})",
            why=f"it was computed on {', '.join(shown)}",
            fix=f"In a new run try, in this order: {'; '.join(loss_spikes(self.plan))}",
        )
