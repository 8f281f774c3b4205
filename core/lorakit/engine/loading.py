"""The model on its device, quantized as planned, with its adapter, and every promise of the plan checked.

Weights are read, quantized and moved block by block, so that host memory never holds the whole model and a block.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from torch import nn

from lorakit.engine import compiling, correction, int8_products, memory
from lorakit.engine.adapter import Adapter, Host, attach
from lorakit.engine.correction import Recovery, correct
from lorakit.engine.modulation import ModulationTable
from lorakit.engine.offload import Conveyor, Travelling
from lorakit.engine.parts import Denoiser, TextEncoder
from lorakit.engine.phases import Context, Work, phase
from lorakit.engine.quantized_cache import QuantizedCache
from lorakit.engine.quantizers import NOTHING, Quantizer, Spared, describe, held, quantize, spared_by
from lorakit.engine.recomputing import Recomputing
from lorakit.engine.weights import Weights, check_names, fill
from lorakit.errors import ModelError
from lorakit.events import Event, Warned
from lorakit.plan import Plan


@dataclass(frozen=True, slots=True)
class Model:
    """The denoiser, the adapter that stands on it, the table of its modulation, what recomputes, who multiplies."""

    denoiser: Denoiser
    adapter: Adapter
    table: ModulationTable | None = None
    recomputing: Recomputing | None = None
    products: int8_products.Triton | None = None


class Placing(Protocol):
    """Where blocks lie once they are filled."""

    def after(self, filled: Iterator[str], denoiser: Denoiser) -> Iterator[str]:
        """The same names of blocks that were filled one after another, each put where it lies from now on."""

    def finish(self, denoiser: Denoiser) -> None:
        """Put everything else on the device."""

    def note(self, denoiser: Denoiser) -> str:
        """Where blocks lie, in words; nothing where that is the device."""


def placing(context: Context) -> Placing:
    """Where the blocks of a plan's base lie: on the device, in host memory, or a part of each in every process."""
    if context.ranks.lockstep:
        from lorakit.engine.sharding import Sharding  # torch's takes most of a second to import

        return Sharding(context.ranks, context.plan.settings.quantization.name)
    return Travelling(Conveyor(context.device), context.plan.settings.speed.offload)


@dataclass(frozen=True, slots=True)
class Base:
    """The denoiser without an adapter, on its device."""

    denoiser: Denoiser
    table: ModulationTable | None = None
    products: int8_products.Triton | None = None


def load_model(context: Context, encoder: TextEncoder | None = None) -> Work[Model]:
    """The denoiser on its device, quantized as planned, with its adapter, and every promise checked.

    The adapter also stands on those parts of a text `encoder` that the plan trains.
    """
    settings = context.plan.settings
    base = yield from load_base(context)
    denoiser = base.denoiser
    hosts = text_hosts(context, encoder) if encoder and settings.text_encoder.train else ()
    fused = settings.speed.adapter == "fused"
    adapter = attach(denoiser, settings.lora, settings.seed, context.device, hosts, fused=fused)
    if compiling.wanted(settings.speed.compile, context.device):
        compiling.compile_blocks(denoiser.blocks)
    recomputing = None
    if settings.train.gradient_checkpointing and settings.speed.recompute != 0:
        planned = settings.speed.recompute
        count = planned if isinstance(planned, int) else None
        recomputing = Recomputing(denoiser.blocks, settings.lora.dropout > 0, count)
    check_facts(context.plan, denoiser, adapter, *holders(context))
    return Model(denoiser, adapter, base.table, recomputing, base.products)


def load_base(context: Context) -> Work[Base]:
    """The denoiser on its device, quantized as planned."""
    settings = context.plan.settings
    plain = settings.quantization.name == "none"
    placed = placing(context)
    denoisers: list[Denoiser] = []
    loaders: list[Loader] = []

    def load() -> Iterator[str]:
        denoiser = context.family.denoiser(context.plan, context.source.hollow())
        denoisers.append(denoiser)
        if any(one.is_meta for one in denoiser.module.parameters()):
            loader = Loader(context, denoiser, foresees=settings.speed.modulation == "table")
            loader.outer()
            if plain:
                for _ in placed.after(loader.blocks(), denoiser):
                    pass  # one item of progress for the whole component
            loaders.append(loader)
        yield denoiser.component

    yield from phase("load", 1, load(), lambda: placed.note(denoisers[0]))
    denoiser = denoisers[0]
    context.check()
    for loader in loaders:
        yield from (Warned(message=note) for note in loader.notes)
        if not plain:
            yield from phase("quantize", len(denoiser.blocks), placed.after(loader.blocks(), denoiser), loader.note)
    if not loaders:
        yield from _place_loaded(context, denoiser, placed)
    placed.finish(denoiser)
    products = None
    if settings.speed.products == "triton":
        products = int8_products.choose(denoiser.blocks, context.device)
        yield from int8_products.told(products)
    return Base(denoiser, loaders[0].table if loaders else None, products)


def text_hosts(context: Context, encoder: TextEncoder) -> tuple[Host, ...]:
    """The text encoders that are trained, with the share of the learning rate that theirs is."""
    settings, family = context.plan.settings, context.family
    share = (settings.text_encoder.learning_rate or 0.0) / settings.optimizer.learning_rate
    parts = ((name, encoder.module.get_submodule(name)) for name in family.trainable_text)
    return tuple(Host(name, part, (part,), family.text_targets, share) for name, part in parts)


def holders(context: Context) -> tuple[Quantizer, Spared]:
    """The plan's quantizer, and those of the layers that the family spares."""
    name, shelf = context.plan.settings.quantization.name, context.shelves.quantizers
    quantizer: Quantizer = shelf[name].resolve()()
    return quantizer, spared_by(context.family, name, shelf)


class Loader:
    """Fills a denoiser that came without weights: its outer parts at once, its blocks one after another.

    Where it `foresees`, modulation layers stay out of the blocks, in a table.
    """

    def __init__(self, context: Context, denoiser: Denoiser, *, foresees: bool = False) -> None:
        self.context, self.denoiser = context, denoiser
        of = f"{denoiser.component} of {context.source.name}"
        self.weights = Weights(context.source.folder / denoiser.component, of)
        check_names(denoiser.module, self.weights, of)
        self.quantizer, self.spared = holders(context)
        names = {id(module): name for name, module in denoiser.module.named_modules()}
        self.names = [names[id(block)] for block in denoiser.blocks]
        self._precise = getattr(denoiser.module, "_keep_in_fp32_modules", None) or ()
        self.form = describe(context.plan.settings.quantization.name, self.quantizer, self.spared)
        self.table = ModulationTable(context.family.modulation) if foresees else None
        if self.table:
            self.form += ", modulation as it is"
        self.layers = self.reused = 0
        self.notes: list[str] = []
        self.recovery = self._recovery()
        self._cache = self._quantized_cache()

    def outer(self) -> None:
        """Fill everything that lies outside the blocks, in the plan's precision, with its corrections."""
        module, within = self.denoiser.module, tuple(f"{name}." for name in self.names)
        fill(
            module,
            self.weights,
            [name for name in module.state_dict() if not name.startswith(within)],
            self.context.source.dtype,
            precise=self._precise,
        )
        if self.recovery:
            layers = {name: pair for name, pair in self.recovery.layers.items() if not name.startswith(within)}
            correct(module, layers)

    def blocks(self) -> Iterator[str]:
        """Fill every block, hold its layers as planned, and put their corrections on; the name of each."""
        for name, block in zip(self.names, self.denoiser.blocks, strict=True):
            self.context.check()
            self._take_modulation(name, block)
            known = self._cache is not None and self._cache.restore(name, block, self.context.device)
            self.reused += known
            if not known:
                self.block(name, block)
                quantize(block, self.quantizer, self.context.device, self.spared)
                memory.trim()
                if self._cache:
                    self._cache.store(name, block)
            self.layers += sum(1 for module in block.modules() if hasattr(module, "in_features"))
            if self.recovery:
                correct(block, self.recovery.layers, f"{name}.")
            yield name

    def _take_modulation(self, name: str, block: nn.Module) -> None:
        """Leave the block's modulation layers in host memory, where they answer ahead, in full precision."""
        for path, linear in (self.table.take(block) if self.table else {}).items():
            fill(linear, self.weights, list(linear.state_dict()), self.context.source.dtype, f"{name}.{path}.")
            linear.requires_grad_(False)
            if self.context.device.type == "cuda":
                for one in linear.parameters():
                    one.data = one.data.pin_memory()

    def note(self) -> str:
        """What came of it, in words."""
        corrected = f", corrected at rank {self.recovery.rank}" if self.recovery else ""
        return f"{self.layers} layers{corrected}" + (f", {self.reused} blocks reused" if self._cache else "")

    def block(self, name: str, block: nn.Module) -> None:
        """Fill one block on the CPU, in the plan's precision."""
        dtype = self.context.source.dtype
        fill(block, self.weights, list(block.state_dict()), dtype, f"{name}.", self._precise)

    def _recovery(self) -> Recovery | None:
        settings = self.context.plan.settings.quantization
        if settings.recovery is None:
            return None
        found = correction.read(Path(settings.recovery))
        self.notes += correction.check(found, self.denoiser.module, self.weights.fingerprint(), self.form)
        return found

    def _quantized_cache(self) -> QuantizedCache | None:
        settings, cache = self.context.plan.settings.quantization, self.context.cache
        if not settings.cache or settings.name == "none":
            return None
        base = cache.files.of_folders([self.weights.folder])
        cache.files.save()
        form = f"{self.form} of {self.context.source.dtype}"
        return QuantizedCache(cache, base, form, self.quantizer, self.spared)


def _place_loaded(context: Context, denoiser: Denoiser, placed: Placing) -> Iterator[Event]:
    """Quantize a model that its family gave with its weights, and put its blocks where they lie."""
    quantizer, spared = holders(context)
    plain = context.plan.settings.quantization.name == "none"
    converted: list[int] = []

    def convert() -> Iterator[str]:
        for number, block in enumerate(denoiser.blocks, 1):
            if not plain:
                converted.append(quantize(block, quantizer, context.device, spared))
            yield f"block {number}"

    work = placed.after(convert(), denoiser)
    if plain:
        for _ in work:
            pass
    else:
        yield from phase("quantize", len(denoiser.blocks), work, lambda: f"{sum(converted)} layers")


def check_facts(
    plan: Plan, denoiser: Denoiser, adapter: Adapter, quantizer: Quantizer, spared: Spared = NOTHING
) -> None:
    """The plan's promises, as facts of what was loaded; ModelError where one does not hold."""
    own = {id(half) for layer in adapter.layers.values() for half in (layer.lora_A, layer.lora_B)}
    strays = [name for name, one in denoiser.module.named_parameters() if one.requires_grad and id(one) not in own]
    if strays:
        raise ModelError(f"{strays[0]} would be trained, and only the adapter may be", why="a plugin unfroze it")
    if not own:
        raise ModelError("the adapter stands on no layer", where="lora.targets")
    name = plan.settings.quantization.name
    if name == "none":
        return
    quantized, plain = held(denoiser.blocks, quantizer, spared)
    if plain or not quantized:
        raise ModelError(
            f"the plan says {name}, and {plain} of {plain + quantized} layers of the blocks are not",
            fix="This is a bug of the quantizer; choose another with --set quantization.name=NAME.",
        )
