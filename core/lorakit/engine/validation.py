"""What a run is measured on, measured: fixed pictures, fixed noise, fixed noise levels, no gradients.

All of it is the training's own loss, on its own quantized base. Draws are functions of the seed, so training makes
the same ones whether it is looked at or not, and every module leaves in the mode that it came in.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from lorakit.engine.adapter import Adapter
from lorakit.engine.draws import seed_of
from lorakit.engine.frozen import FrozenLinear
from lorakit.engine.gathered import whole
from lorakit.engine.loop import Trainer
from lorakit.engine.lora_linear import LoraLinear
from lorakit.engine.parts import Batch, Said
from lorakit.engine.preparing import Item, Prepared
from lorakit.events import Validated
from lorakit.validation import LEVELS, is_due


@dataclass(frozen=True, slots=True)
class Tried:
    """A picture that is looked at, and its caption without the trigger word where it has one."""

    item: Item
    bare: Said | None = None


@dataclass(frozen=True, slots=True)
class Materials:
    """Everything that is looked at: pictures held out, pictures trained on, and what concerns neither.

    `others` are items whose text is an unrelated prompt; of their latents only the shape counts.
    """

    held_out: Sequence[Tried]
    compared: Sequence[Tried]
    others: Sequence[Item]


@dataclass(frozen=True, slots=True)
class Glance:
    """One place of the base's own walk from noise: what the model is shown there, and what the base answered.

    Where it does not `count`, it is looked at in company of other processes, which answer for it.
    """

    noisy: Tensor
    t: Tensor
    answer: Tensor
    about: Callable[[], Batch]
    counts: bool = True


@dataclass
class Validator:
    """Measures the adapter as it would be saved; `begin_pass` is called before every pass and may raise."""

    trainer: Trainer
    materials: Materials
    begin_pass: Callable[[], None]
    seconds: float = 0.0
    """Time that validation took so far."""
    _walks: list[Glance] = field(default_factory=list)
    _sizes: dict[str, float] = field(default_factory=dict)

    @property
    def seed(self) -> int:
        """The run's."""
        return self.trainer.plan.settings.seed

    def due(self) -> Iterator[Validated]:
        """What is measured after the trainer's last update, where that is planned."""
        if self.is_due(self.trainer.updates):
            yield self.measure()

    def is_due(self, update: int) -> bool:
        """Whether something is measured after an update."""
        plan = self.trainer.plan
        return is_due(update, plan.settings.validation.every, plan.arithmetic, plan.settings.train.accumulation)

    def share(self, seconds: float) -> str:
        """Which share of a training's `seconds` went here, in words; nothing where nothing was measured."""
        return f", {self.seconds / seconds:.1%} of the time for validation" if self.seconds else ""

    @torch.no_grad()
    def measure(self) -> Validated:
        """Everything, once."""
        began, trainer, held = time.perf_counter(), self.trainer, self.materials.held_out
        with still(trainer.adapter), trainer.adapter.at(1.0, trainer.average):
            apart = self._losses(held, "held out")
            taught = self._losses(self.materials.compared, "compared")
            trigger = self._trigger(
                *((held, apart, "held out") if held else (self.materials.compared, taught, "compared"))
            )
            drift = self._drift()
            norms = self._norms()
        seconds = time.perf_counter() - began
        self.seconds += seconds
        largest = max(norms, key=lambda name: norms[name], default="")
        return Validated(
            update=trainer.updates,
            loss=_mean(apart),
            loss_error=_error(apart),
            train_loss=_mean(taught),
            train_error=_error(taught),
            gap=float(apart.mean() - taught.mean()) if len(apart) else None,
            levels=LEVELS,
            loss_by_level=tuple(apart.mean(0).tolist()) if len(apart) else (),
            train_by_level=tuple(taught.mean(0).tolist()),
            trigger=_mean(trigger),
            trigger_error=_error(trigger),
            drift=drift,
            norm=float(torch.tensor(list(norms.values())).median()) if norms else None,
            largest_norm=norms.get(largest),
            largest_layer=largest,
            seconds=seconds,
            loss_by_picture=tuple(apart.mean(1).tolist()),
        )

    def _losses(self, tried: Sequence[Tried], kind: str, bare: bool = False) -> Tensor:
        """The loss of each picture at each level, (pictures, levels), in fp32 on the CPU."""
        numbers = [number for number, one in enumerate(tried) if one.bare is not None or not bare]
        ranks, cells = self.trainer.ranks, [(number, place) for number in numbers for place in range(len(LEVELS))]
        own = ranks.passed(range(len(cells)))
        shown = {key: self._shown(tried[cells[key][0]], kind, *cells[key], bare) for key, _ in own}
        foresight = self.trainer.foreseen((key, one.t, one.about) for key, one in shown.items())
        scores = []
        for key, _ in own:
            self.begin_pass()
            with foresight.at(key):
                scores.append(self.trainer.score(shown[key]))
        found = torch.zeros(len(cells))
        if counting := [key for key, counts in own if counts]:  # those in company come last
            found[counting] = torch.cat(scores)[: len(counting)].cpu()
        return ranks.summed(found).view(-1, len(LEVELS)) if cells else EMPTY

    def _shown(self, one: Tried, kind: str, number: int, place: int, bare: bool) -> Prepared:
        text, shape = one.bare if bare and one.bare is not None else one.item.text, one.item.latents.shape
        draws = torch.Generator().manual_seed(seed_of(f"validation {kind}", self.seed, number * len(LEVELS) + place))
        noise = torch.randn((1, *shape), generator=draws)
        offset = torch.randn((1, shape[0], 1, 1), generator=draws)
        return self.trainer.batches.at([one.item], [text], noise, offset, torch.tensor(LEVELS[place : place + 1]))

    def _trigger(self, tried: Sequence[Tried], losses: Tensor, kind: str) -> Tensor:
        """How much more the pictures are missed without their trigger word, by picture and level, at the same noise."""
        asked = [number for number, one in enumerate(tried) if one.bare is not None]
        return self._losses(tried, kind, bare=True) - losses[asked] if asked else EMPTY

    # -- drift -------------------------------------------------------------------------------------------------------

    def _drift(self) -> float | None:
        """The distance of the model's answers from the base's, over their length, on prompts that concern neither."""
        ranks, items = self.trainer.ranks, self.materials.others
        if not items:
            return None
        if not self._walks:
            own = ranks.passed(range(len(items)))
            with self.trainer.adapter.at(0.0):
                self._walks = [one for number, counts in own for one in self._walk(number, items[number], counts)]
        told = [one.about() for one in self._walks]
        foresight = self.trainer.foreseen((key, self._walks[key].t, about) for key, about in enumerate(told))
        found = []
        for key, one in enumerate(self._walks):
            self.begin_pass()
            with foresight.at(key):
                answer = self.trainer.denoiser.predict(one.noisy, one.t, told[key]).float()
            if one.counts:
                found.append((answer - one.answer).norm() / one.answer.norm())
        total, count = ranks.summed(torch.tensor([float(sum(found)), float(len(found))])).tolist()
        return float(total / count)

    def _walk(self, number: int, item: Item, counts: bool) -> Iterator[Glance]:
        """The base's own walk from noise to a picture of the item's text, in as many steps as there are levels."""
        trainer = self.trainer
        draws = torch.Generator().manual_seed(seed_of("drift", self.seed, number))
        noise = torch.randn((1, *item.latents.shape), generator=draws).to(trainer.device, trainer.dtype)
        sampler = trainer.scheduler.sampler(len(LEVELS), trainer.batches.tokens(noise))
        latents = sampler.start(noise)
        for place, now in enumerate(sampler.times.to(trainer.device)):
            self.begin_pass()
            noisy, t = sampler.seen(latents, place), now.expand(1)
            answer = trainer.denoiser.predict(noisy, t, trainer.batches.told([item], [item.text]))
            yield Glance(noisy, t, answer.float(), lambda: trainer.batches.told([item], [item.text]), counts)
            latents = sampler.step(latents, answer, place)

    # -- norms -------------------------------------------------------------------------------------------------------

    def _norms(self) -> dict[str, float]:
        """The length of each layer's adapter over that of its weight, as Frobenius norms."""
        adapter = self.trainer.adapter
        if not self._sizes:
            self._sizes = self._weight_norms()
        found = {}
        for name, size in self._sizes.items():
            layer = adapter.layers[name]
            inner, outer = layer.lora_A @ layer.lora_A.T, layer.lora_B.T @ layer.lora_B
            found[name] = (
                float((inner * outer).sum().clamp_min(0).sqrt()) * adapter.scale / size
            )  # ||BA||² = <AAᵀ, BᵀB>
        return found

    def _weight_norms(self) -> dict[str, float]:
        """The length of the weight of each layer that has an adapter, by the layer's name."""
        names, found = {layer: name for name, layer in self.trainer.adapter.layers.items()}, dict[str, float]()
        self.begin_pass()
        for host in (*self.trainer.denoiser.blocks, *self.trainer.adapter.hosts.values()):
            with whole(host):
                layers = [
                    (names.pop(one), one) for one in host.modules() if isinstance(one, LoraLinear) and one in names
                ]
                found |= {name: size for name, layer in layers if (size := weight_norm(layer.base))}
        return {name: found[name] for name in self.trainer.adapter.layers if name in found}


EMPTY = torch.zeros(0, len(LEVELS))


def _mean(losses: Tensor) -> float | None:
    return float(losses.mean()) if len(losses) else None


def _error(losses: Tensor) -> float | None:
    """The standard error of the mean over pictures; levels are fixed, and pictures are what chance brings."""
    return float(losses.mean(1).std() / len(losses) ** 0.5) if len(losses) > 1 else None


def weight_norm(layer: nn.Module) -> float | None:
    """The Frobenius norm of a linear layer's weight, as it is held; None where the layer does not show it."""
    while isinstance(layer.__dict__.get("_modules", {}).get("base"), nn.Module):
        layer = layer.get_submodule("base")  # corrections and adapters wrap a layer and call it so
    if isinstance(layer, FrozenLinear):
        return float(layer.restored(torch.float32).norm())
    weight = getattr(layer, "weight", None)
    return float(weight.float().norm()) if isinstance(weight, Tensor) and weight.is_floating_point() else None


@contextmanager
def still(adapter: Adapter) -> Iterator[None]:
    """For a while, every model that the adapter stands on in evaluation mode."""
    modules = [module for host in adapter.hosts.values() for module in host.modules()]
    modes = [module.training for module in modules]
    try:
        for host in adapter.hosts.values():
            host.eval()
        yield
    finally:
        for module, mode in zip(modules, modes, strict=True):
            module.training = mode
