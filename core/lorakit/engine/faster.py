"""What makes updates faster and is settled on the machine: what quantizers see, what recomputes, compiled code."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from functools import partial
from itertools import islice

import torch

from lorakit.dataset import Dataset
from lorakit.engine import attention, compiling, graphs, int8_products, memory
from lorakit.engine.loading import Model
from lorakit.engine.loop import Trainer
from lorakit.engine.measuring import device_name
from lorakit.engine.phases import Context, Result, phase
from lorakit.engine.preparing import Samples
from lorakit.engine.quantizers import Calibrated
from lorakit.engine.recomputing import Fit
from lorakit.estimate.model import size_of
from lorakit.estimate.space import STATE
from lorakit.events import Event, PhaseFinished, PhaseProgress, PhaseStarted, UpdateFinished, Warned
from lorakit.order import AHEAD, Turn, first_share, turns
from lorakit.registry import Part
from lorakit.words import count


class Faster:
    """The updates of one run, as fast as its plan and its machine allow."""

    def __init__(self, context: Context, dataset: Dataset, model: Model, optimizer: Part) -> None:
        self._context, self._dataset, self._model, self._optimizer = context, dataset, model, optimizer
        self._plan, self._device = context.plan, context.device
        self._fit: Fit | None = None
        self.attention: attention.Chosen | None = None

    def begin(self, trainer: Trainer, samples: Samples) -> Iterator[Event]:
        """What is settled before the first update, each as a phase of its own."""
        yield from self._calibrate(trainer, samples)
        yield from int8_products.told(self._model.products)
        settings = self._plan.settings
        trainer.see(first_share(self._dataset, settings.train, settings.seed), samples)
        yield from self._fit_memory()
        if self._plan.settings.speed.attention == "timed" and self._device.type == "cuda":
            yield from self._choose_attention(trainer, samples)
        if compiling.wanted(self._plan.settings.speed.compile, self._device):
            yield from self._compile(trainer, samples)
        if settings.speed.graphs == "on":
            yield from self._capture(trainer)

    def _capture(self, trainer: Trainer) -> Iterator[Event]:
        """Have passes captured from the next update on, where they can be; why not, where that shows only here."""
        recorder, obstacle = graphs.recorder_for(self._device), ""
        if recorder is None:
            obstacle = f"CUDA graphs are made on CUDA, and the device is {memory.describe(self._device)}"
        elif trainer.drops:
            obstacle = "layers of the model drop some of their inputs, and a graph has no seed of its own"
        if obstacle or recorder is None:
            yield Warned(message=f"speed.graphs = 'on' changes nothing here: {obstacle}")
            return
        trainer.graphs = graphs.Graphs(trainer.compute, recorder, self._device)

    def _calibrate(self, trainer: Trainer, samples: Samples) -> Iterator[Event]:
        """Let a quantizer that wants to see a batch see the run's first."""
        settings = self._plan.settings
        quantizer = self._context.shelves.quantizers[settings.quantization.name].resolve()()
        if not isinstance(quantizer, Calibrated):
            return
        first = first_share(self._dataset, settings.train, settings.seed)
        said: list[str] = []

        def work() -> Iterator[str]:
            adapter = self._model.adapter
            with adapter.at(1.0, torch.zeros_like(adapter.flat)):
                batch = partial(trainer.loss, first, samples)
                said.append(quantizer.calibrate(self._model.denoiser.blocks, lambda: batch().sum()))
            adapter.grad.zero_()
            yield "first batch"

        yield from phase("calibrate", 1, work(), lambda: said[0])

    def _fit_memory(self) -> Iterator[Event]:
        """Where it is planned, let as many blocks keep their activations as fit."""
        recomputing, size = self._model.recomputing, size_of(self._plan, self._context.family)
        if recomputing is None or size is None or self._plan.settings.speed.recompute != "fit":
            return
        each = STATE if self._optimizer.held is None else self._optimizer.held
        state = int(self._model.adapter.flat.numel() * each)  # made by the first update
        room, held = memory.free(self._device) - state, memory.held(self._device) + state
        self._fit = Fit(self._plan, size, recomputing, room, held)
        said = self._fit.said
        yield from phase("fit", 1, iter(["free memory"]), lambda: said)

    def _choose_attention(self, trainer: Trainer, samples: Samples) -> Iterator[Event]:
        """Time attention kernels on what the first batch asks of them."""
        settings = self._plan.settings
        first = first_share(self._dataset, settings.train, settings.seed)
        file = self._context.cache.folder / "attention.json"
        forms = yield from self._within(trainer, lambda: attention.seen(lambda: trainer.pass_through(first, samples)))

        def work() -> Iterator[str]:
            self.attention = attention.choose(forms, self._device, device_name(self._device), file)
            yield "first batch"

        yield from phase("attention", 1, work(), lambda: str(self.attention or "the model asks for none"))

    def _compile(self, trainer: Trainer, samples: Samples) -> Iterator[Event]:
        """Compile for the forms that the first batches have; no weight changes."""
        settings, began = self._plan.settings, time.perf_counter()
        forms: dict[object, Turn] = {}
        for batches in islice(turns(self._dataset, settings.train, settings.seed), AHEAD):
            for turn in trainer.ranks.own(batches):
                forms.setdefault(trainer.batches.form(turn, samples), turn)
        chosen = list(forms.values())[: compiling.FORMS]
        yield PhaseStarted(phase="compile", total=len(chosen))
        for done, turn in enumerate(chosen, 1):
            yield from self._within(trainer, partial(_compiled, trainer, turn, samples))
            told = f"{count(len(turn.samples), 'picture')} of {self._dataset.samples[turn.samples[0]].bucket}"
            yield PhaseProgress(phase="compile", done=done, note=told)
        note = f"{count(len(chosen), 'form')} of batches"
        yield PhaseFinished(phase="compile", seconds=time.perf_counter() - began, note=note)

    def start(self, trainer: Trainer, batches: Sequence[Turn], samples: Samples) -> Generator[Event, None, None]:
        """One update, made again where memory runs out and blocks still keep their activations.

        Draws are functions of the pass and weights move last, so it is the same update.
        """

        def work() -> None:
            with attention.preferred(self.attention):  # no longer than this, for it holds for the whole process
                trainer.start(batches, samples)

        yield from self._within(trainer, work)

    def _within(self, trainer: Trainer, work: Callable[[], Result]) -> Generator[Event, None, Result]:
        """What some work answers; where memory runs out while blocks keep their activations, they stop that."""
        try:
            return work()
        except Exception as error:
            if self._fit is None or trainer.stepping or not memory.is_exhausted(error):
                raise
            said = self._fit.exhausted()
            if not said:
                raise
        memory.release()  # outside of the handler, whose error holds what was computed
        yield Warned(message=said)
        return work()

    def after(self, trainer: Trainer, done: UpdateFinished, batches: Sequence[Turn]) -> Iterator[Event]:
        """What kernels that failed leave to torch, and which passes are captured.

        What the first updates say of memory, where the device counts it.
        """
        yield from int8_products.told(self._model.products)
        if trainer.graphs is not None:
            yield from trainer.graphs.news()
        if self._fit is None or self._device.type != "cuda":
            return
        kinds = [self._dataset.samples[turn.samples[0]].bucket for turn in batches]
        said = self._fit.after(done.update, kinds, done.memory)
        if said:
            memory.release()
            yield Warned(message=said)


def _compiled(trainer: Trainer, turn: Turn, samples: Samples) -> None:
    """A batch through blocks that are compiled on the way."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Torchinductor does not support code generation for complex")
            trainer.pass_through(turn, samples)
    except Exception as error:
        told = compiling.failed(error)
        if told is None:
            raise
        raise told from error
