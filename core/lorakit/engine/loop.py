"""The update: batches in, one step of the optimizer out."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lorakit.advice import loss_spikes
from lorakit.alarms import Pass
from lorakit.engine.adapter import Adapter
from lorakit.engine.checkpoint import State
from lorakit.engine.draws import draw, seed_of
from lorakit.engine.modulation import Foresight, ModulationTable
from lorakit.engine.optimizers import learning_rate
from lorakit.engine.parts import Batch, Conditions, Denoiser, Said, Text
from lorakit.engine.ranks import ALONE, Ranks
from lorakit.engine.schedulers import Scheduler
from lorakit.engine.sharing import RANDOM
from lorakit.errors import NotFiniteError, RunError
from lorakit.order import Turn
from lorakit.plan import Plan


@dataclass(frozen=True, slots=True)
class Item:
    """What a sample is taught with: latents (C, H, W), text, the text of its empty caption, references (C, h, w).

    `sizes` are those of `Batch.sizes`.
    """

    latents: Tensor
    text: Said
    empty: Said | None = None
    references: tuple[Tensor, ...] = ()
    sizes: tuple[int, ...] = (0, 0, 0, 0, 0, 0)


KNOWN = ("state", "param_groups")
"""What every optimizer's `state_dict` holds."""

Samples = Callable[[int], Item]
"""A sample by its index."""


@dataclass(frozen=True, slots=True)
class Step:
    """What an update did."""

    loss: float
    grad_norm: float
    learning_rate: float
    passes: tuple[Pass, ...] = ()
    reach: float | None = None
    """The norm of the adapter's B halves before it, now and then."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """A batch on its device: clean latents and noise (B, C, H, W), noise levels (B,), what else the model is told.

    `drawn` are the draws and the levels made of them, as numbers.
    """

    clean: Tensor
    noise: Tensor
    t: Tensor
    about: Batch
    drawn: tuple[tuple[float, float], ...] = ()


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
        self.updates = 0
        self._saw = False
        self.stepping = False  # while weights change, and what is in memory is neither before nor after an update
        self._patch, self.dtype, self.device = patch, dtype, adapter.flat.device
        self._conditions, self._table = conditions, table
        self._foresight: Foresight[int] = Foresight((), {})
        self._drawn: list[tuple[float, float]] = []  # of the update under way
        modules = (module for host in adapter.hosts.values() for module in host.modules())
        self._drops = adapter.dropout > 0 or any(isinstance(one, nn.Dropout) and one.p > 0 for one in modules)

    def update(self, turns: Sequence[Turn], samples: Samples) -> Step:
        """One update over `turns`, each picture's loss counting the same however they are batched."""
        pictures = sum(len(turn.samples) for turn in turns)
        self.adapter.train()
        self.adapter.grad.zero_()
        self._drawn.clear()
        losses: list[Tensor] = []
        for turn in self.ranks.own(turns):
            self.see(turn, samples)
            with self._seeded("dropout", turn.first_pass, self._drops):
                loss = self.loss(turn, samples)
                losses.append(loss.detach())
                mean = loss.sum() / pictures
                del loss  # so that its graph goes with the backward pass
                mean.backward()  # type: ignore[no-untyped-call]
        losses[:], self._drawn[:] = self.ranks.settled(self.adapter.grad, losses, self._drawn, turns)
        norm = self.adapter.grad.norm()
        told: list[float] = torch.cat([*losses, norm[None], *self._reach()]).tolist()  # the one wait for the device
        shown = (index for turn in turns for index in turn.samples)
        together = zip(shown, self._drawn, told, strict=False)  # norms stand after the losses
        passes = tuple(Pass(sample, *drawn, value) for sample, drawn, value in together)
        average, length, reach = sum(told[:pictures]) / pictures, told[pictures], told[pictures + 1 :]
        self._check(average, length, passes)
        limit = self.plan.settings.train.max_grad_norm
        if limit:
            self.adapter.grad.mul_((limit / (norm + 1e-6)).clamp(max=1.0))
        rate = learning_rate(self.plan.settings.optimizer, self.updates + 1, self.plan.settings.train.updates)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["share"]
        self.stepping = True
        with self._seeded("optimizer", self.updates):  # some round at random
            self.optimizer.step()
        self.updates += 1
        self._follow()
        self.stepping = False
        return Step(average, length, rate, passes, reach[0] if reach else None)

    def _reach(self) -> list[Tensor]:
        """The norm of the adapter's B halves, (1,), after 1, 2, 4, 8 updates and so on, and each hundredth."""
        if not self.updates or (self.updates.bit_count() > 1 and self.updates % 100):
            return []
        halves = [layer.lora_B.detach() for layer in self.adapter.layers.values()]
        return [torch.stack(torch._foreach_norm(halves)).norm()[None]]

    def foresee(self, updates: Sequence[Sequence[Turn]], samples: Samples) -> None:
        """Work out ahead what the modulation layers answer in these updates."""
        if self._table is not None:
            prepared = ((turn, self._prepared(turn, samples)) for turns in updates for turn in self.ranks.own(turns))
            self._foresight = self.foreseen((turn.first_pass, one.t, one.about) for turn, one in prepared)

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
        with self._seeded("dropout", turn.first_pass, self._drops):
            self.loss(turn, samples)
        self._drawn.clear()
        self.adapter.train()

    def pass_through(self, turn: Turn, samples: Samples) -> None:
        """A batch forward and backward that leaves nothing behind, in the mode of training."""
        self.adapter.train()
        with self._seeded("dropout", turn.first_pass, self._drops):
            self.loss(turn, samples).sum().backward()  # type: ignore[no-untyped-call]
        self.adapter.grad.zero_()
        self._drawn.clear()

    def loss(self, turn: Turn, samples: Samples) -> Tensor:
        """The weighted squared error of each picture of a batch, (B,), in fp32."""
        with self._foresight.at(turn.first_pass):
            shown = self._prepared(turn, samples)
            self._drawn += shown.drawn
            return self.score(shown)

    def score(self, shown: Prepared) -> Tensor:
        """The weighted squared error of each picture of a batch that is prepared, (B,), in fp32."""
        noisy = self.scheduler.mix(shown.clean, shown.noise, shown.t).to(self.dtype)
        answer = self.denoiser.predict(noisy, shown.t, shown.about)
        error = (answer.float() - self.scheduler.target(shown.clean, shown.noise, shown.t)) ** 2
        return error.flatten(1).mean(1) * self.scheduler.weight(shown.t)

    def _prepared(self, turn: Turn, samples: Samples) -> Prepared:
        found = [samples(index) for index in turn.samples]
        draws = [
            draw(self.plan.settings.seed, turn.first_pass + place, tuple(item.latents.shape))
            for place, item in enumerate(found)
        ]
        dropout = self.plan.settings.train.caption_dropout
        texts = [
            item.empty if item.empty is not None and chance.drop < dropout else item.text
            for chance, item in zip(draws, found, strict=True)
        ]
        noise = torch.stack([chance.noise for chance in draws])
        offset = torch.stack([chance.offset for chance in draws])
        return self.prepared(found, texts, noise, offset, torch.stack([chance.level for chance in draws]))

    def prepared(
        self, items: Sequence[Item], texts: Sequence[Said], noise: Tensor, offset: Tensor, u: Tensor
    ) -> Prepared:
        """A batch at these draws: noise (B, C, H, W) and (B, C, 1, 1), and u (B,) in (0, 1) for the noise level."""
        clean = torch.stack([item.latents for item in items]).float()
        noise = self.scheduler.noise(noise, offset)
        t = self.scheduler.level(u, self.tokens(clean))
        drawn = tuple(zip(u.tolist(), t.tolist(), strict=True))
        clean, noise, t = (tensor.to(self.device) for tensor in (clean, noise, t))
        return Prepared(clean, noise, t, self.told(items, texts), drawn)

    def form(self, turn: Turn, samples: Samples) -> object:
        """What code compiled for a batch depends on: how many pictures, their shape, and how long their texts are."""
        items = [samples(index) for index in turn.samples]
        texts = [item.text.lengths if isinstance(item.text, Text) else item.text for item in items]
        shapes = [tuple(one.shape) for one in (items[0].latents, *items[0].references)]
        return len(items), tuple(shapes), max(texts, key=str)

    def told(self, items: Sequence[Item], texts: Sequence[Said]) -> Batch:
        """What the model is told of items that have these texts."""
        text = self._conditions(texts).to(self.device, self.dtype)
        seen = zip(*(item.references for item in items), strict=True)
        references = tuple(torch.stack(some).to(self.device, self.dtype) for some in seen)
        sizes = torch.tensor([item.sizes for item in items], device=self.device)
        return Batch(text, references, sizes, self.plan.settings.train.guidance)

    def tokens(self, latents: Tensor) -> int:
        """Image tokens of a picture with latents (..., H, W)."""
        return latents.shape[-1] * latents.shape[-2] // self._patch**2

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
        """Everything that training goes on from."""
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
            self.average.lerp_(self.adapter.flat.detach(), 1 - decay)

    def _check(self, loss: float, norm: float, passes: Sequence[Pass]) -> None:
        if math.isfinite(loss) and math.isfinite(norm):
            return
        guilty = [one for one in passes if not math.isfinite(one.loss)] or passes
        shown = sorted({f"{self.describe(one.sample)} at noise level {one.level:.4g}" for one in guilty})
        raise NotFiniteError(
            f"the loss or gradient of update {self.updates + 1} is not a finite number (loss {loss}, gradient {norm})",
            why=f"it was computed on {', '.join(shown)}",
            fix=f"In a new run try, in this order: {'; '.join(loss_spikes(self.plan))}",
        )
