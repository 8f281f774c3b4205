"""A plan carried out, from the first file to the proof, as a stream of events."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import suppress
from itertools import islice

import torch
import torch.version

from lorakit import workflow
from lorakit.alarms import Watch
from lorakit.changes import fixed
from lorakit.control import Control
from lorakit.engine import checkpoint, lora_file, memory, preview
from lorakit.engine.attended import Attended
from lorakit.engine.cache import Cache, sync, write_atomically
from lorakit.engine.checking import Checking
from lorakit.engine.faster import Faster
from lorakit.engine.gallery import Gallery
from lorakit.engine.loading import load_model
from lorakit.engine.loop import Trainer
from lorakit.engine.material import Material, draws, gather
from lorakit.engine.objective import make_scheduler
from lorakit.engine.phases import Context, StopAsked, phase
from lorakit.engine.proof import Proof, prove
from lorakit.engine.ranks import ALONE, Ranks
from lorakit.engine.run_folder import validated
from lorakit.engine.schedulers import Scheduler
from lorakit.engine.source import cache_folder, locate
from lorakit.engine.validation import Validator
from lorakit.engine.versions import versions
from lorakit.errors import NotFiniteError
from lorakit.estimate.savings import savings
from lorakit.events import (
    CheckpointRemoved,
    CheckpointSaved,
    Event,
    PhaseFinished,
    PhaseStarted,
    RunFinished,
    RunStarted,
    RunStopped,
    SheetDrawn,
    UpdateFinished,
    Verb,
    Warned,
)
from lorakit.order import AHEAD, Turn, is_due, turns
from lorakit.plan import Plan
from lorakit.registry import Shelves

NOTHING_DRAWN = (
    "this run draws nothing: it has no sampling.prompts, or sampling.every is 0 and sampling.strengths empty, so that "
    "nothing was encoded to draw with"
)


class Run:
    """One carrying out of a plan, by one process or one of several."""

    def __init__(self, plan: Plan, shelves: Shelves, control: Control, ranks: Ranks = ALONE) -> None:
        self.plan, self.shelves, self.control, settings = plan, shelves, control, plan.settings
        self.family = shelves.families.find(settings.family, "the plan")
        shelves.schedulers.find(settings.scheduler.name, "the plan")
        self.optimizer_part = shelves.optimizers.find(settings.optimizer.name, "the plan")
        shelves.quantizers.find(settings.quantization.name, "the plan")
        self.ranks = ranks
        self.device = ranks.device or memory.device_for(settings.model.device)
        self.source = locate(plan, self.family)
        self.folder = plan.folder
        self.began = time.perf_counter()
        self.trainer: Trainer | None = None
        self.gallery: Gallery | None = None
        self.watch = Watch(plan, savings(plan, self.family, shelves))
        control.begin({} if draws(plan) else {"sample": NOTHING_DRAWN})

    def events(
        self, start: int = 0, notes: Sequence[str] = (), changed: Sequence[str] = ()
    ) -> Generator[Event, None, None]:
        """Everything that happens, in order; a stop, a closed generator or Ctrl-C leaves a checkpoint.

        `notes` are warnings about how the run goes on, `changed` the settings that its plan has anew.
        """
        yield RunStarted(
            folder=str(self.folder),
            name=self.plan.settings.name,
            device=memory.describe(self.device),
            versions=versions(),
            resumed_from=start,
            changed=tuple(changed),
        )
        yield from (Warned(message=note) for note in notes)
        try:
            attended = Attended(self.control, self._ready, self._serve, lambda: self._done(start))
            yield from attended.events(self._work(start))
        except StopAsked:
            self.ranks.leave(None, self.control.reason)
            self._save_now()
            yield RunStopped(update=self._done(start), reason=self.control.reason, folder=str(self.folder))
        except BaseException as error:
            self.ranks.leave(error, "asked to stop")
            with suppress(Exception):  # what went wrong first is what is told
                self._save_now()
            if isinstance(error, NotFiniteError):
                yield self.watch.raised("not finite", self._done(start) + 1, f"{error.what}; {error.why}")
            if not memory.is_exhausted(error):
                raise
            smaller = self.watch.smaller()
            told = memory.exhausted(self.device, error, self._done(start), smaller)
            yield self.watch.raised("out of memory", self._done(start), told.what, smaller)
            raise told from error

    def _work(self, start: int) -> Generator[Event, None, None]:
        cache = Cache(cache_folder(self.plan))
        control, ranks = self.control, self.ranks
        context = Context(self.plan, self.family, self.shelves, self.source, cache, self.device, control, ranks)
        scheduler = make_scheduler(context)  # first, for a model of another objective is refused here
        material = yield from gather(context)
        context.check()
        self.model = yield from load_model(context, material.encoder)
        self.context, self.dataset = context, material.dataset
        self.denoiser, self.adapter = self.model.denoiser, self.model.adapter
        trainer = self._trainer(material, scheduler, start)
        self.faster = Faster(context, self.dataset, self.model, self.optimizer_part)
        yield from self.faster.begin(trainer, material.item)
        painter = self._painter(material)
        self.gallery = Gallery(context, trainer, painter, self.watch) if painter else None
        self.validator = Validator(trainer, material.exam(), self.context.check)
        yield from self._train(trainer, material)
        if self.ranks.first:
            yield from self._finish(trainer, painter)

    def _trainer(self, material: Material, scheduler: Scheduler, start: int) -> Trainer:
        groups = [part.group for part in self.adapter.parts]
        trainer = Trainer(
            self.plan,
            self.denoiser,
            self.adapter,
            scheduler,
            self.optimizer_part.resolve()(groups, self.plan.settings.optimizer),
            self.family.patch,
            self.context.source.dtype,
            material.conditions,
            self.model.table,
        )
        trainer.ranks = self.ranks
        trainer.describe = self.watch.describe = lambda number: str(self.dataset.samples[number].path)
        self.watch.taught = lambda: [sample.path for sample in self.dataset.samples]
        if start:
            trainer.restore(checkpoint.load(self.folder, start, self.context.device))
        self.trainer = trainer
        return trainer

    def _painter(self, material: Material) -> preview.Painter | None:
        if material.coder is None or not self.trainer:
            return None
        settings, scheduler = self.plan.settings, self.trainer.scheduler
        return preview.Painter(
            self.family,
            self.family.variants[settings.variant],
            settings.sampling,
            self.denoiser,
            material.coder,
            scheduler,
            material.subjects(),
            material.conditions,
            self.model.table,
        )

    # -- training ------------------------------------------------------------------------------------------------

    def _train(self, trainer: Trainer, material: Material) -> Iterator[Event]:
        settings, dataset = self.plan.settings, self.dataset
        yield PhaseStarted(phase="train", total=settings.train.updates)
        checking = Checking(self.plan, self.family, self.shelves, self.context.device)
        began = time.perf_counter()
        passes = 0
        if self.ranks.said(trainer.updates not in validated(self.folder)):  # it may have been before a stop
            yield from self.validator.due()
        if trainer.updates and self.gallery:  # a stop may have come while they were drawn
            yield from self.gallery.due(missing=True)
        then = time.perf_counter()
        for batches in self._foreseen(trainer, material):
            self.context.check()
            step = yield from self.faster.update(trainer, batches, material.item)
            passes = batches[-1].first_pass + len(batches[-1].samples)
            now = time.perf_counter()
            done = UpdateFinished(
                update=trainer.updates,
                passes=passes,
                epoch=passes / dataset.passes,
                loss=step.loss,
                learning_rate=step.learning_rate,
                grad_norm=step.grad_norm,
                seconds=now - then,
                memory=memory.peak(self.context.device),
            )
            yield done
            yield from checking.after(done)
            yield from self.faster.after(done, batches)
            spilled = memory.spilled(self.device) if self.watch.looks_at_memory(done.update) else 0
            yield from self.watch.after(done, step.passes, step.reach, spilled)
            yield from self._at(trainer.updates)
            then = time.perf_counter()
        seconds = time.perf_counter() - began
        note = f"{trainer.updates} updates{self.validator.share(seconds)}"
        yield PhaseFinished(phase="train", seconds=seconds, note=note)

    def _foreseen(self, trainer: Trainer, material: Material) -> Iterator[Sequence[Turn]]:
        """The batches of every update to come, worked out ahead some updates at a time."""
        coming = turns(self.dataset, self.plan.settings.train, self.plan.settings.seed, trainer.updates)
        while ahead := list(islice(coming, max(1, AHEAD * self.ranks.count // self.plan.arithmetic.effective_batch))):
            trainer.foresee(ahead, material.item)
            yield from ahead

    def _at(self, update: int) -> Iterator[Event]:
        """The checkpoint, the validation and the previews that are due after `update`."""
        settings, sums, last = self.plan.settings, self.plan.arithmetic, update == self.plan.settings.train.updates
        every = settings.save.every
        if self.ranks.first and every and (last or is_due(update, every, sums, settings.train.accumulation)):
            yield from self._kept()
        yield from self.validator.due()
        if self.gallery:
            yield from self.gallery.due()

    def _ready(self, what: Verb) -> bool:
        """Whether what somebody asks for can be made by now."""
        return self.gallery is not None if what == "sample" else self._done() > 0

    def _serve(self, what: Verb) -> Iterator[Event]:
        """The previews, or the checkpoint, that somebody asks for."""
        if what == "sample" and self.gallery:
            yield from self.gallery.now()
        elif what == "save":
            yield from self._kept()

    # -- saving --------------------------------------------------------------------------------------------------

    def _average(self) -> torch.Tensor | None:
        return self.trainer.average if self.trainer else None

    def _file(self) -> bytes:
        assert self.trainer
        with self.adapter.at(1.0, self._average()):
            return lora_file.encode(self.plan, self.family, self.adapter, self.dataset, self.trainer.updates)

    def _checkpoint(self) -> CheckpointSaved:
        assert self.trainer
        name = f"{self.plan.settings.name}-{self.trainer.updates:06d}.safetensors"
        place = checkpoint.save(self.folder, self.trainer.state(), name, self._file(), fixed(self.plan))
        return CheckpointSaved(update=self.trainer.updates, folder=str(place), lora=str(place / name))

    def _kept(self) -> Iterator[Event]:
        """A checkpoint of where training stands, and room made for it."""
        yield self._checkpoint()
        for gone in checkpoint.prune(self.folder, self.plan.settings.save.keep):
            yield CheckpointRemoved(update=gone, folder=str(checkpoint.folder_of(self.folder, gone)))

    def _save_now(self) -> None:
        """A checkpoint of where training stands, unless an update was cut in the middle or nothing is new."""
        if not self.ranks.first or not self.trainer or self.trainer.stepping or not self.trainer.updates:
            return
        if self.trainer.updates not in checkpoint.saved(self.folder):
            self._checkpoint()

    def _done(self, start: int = 0) -> int:
        return self.trainer.updates if self.trainer else start

    def _finish(self, trainer: Trainer, painter: preview.Painter | None) -> Iterator[Event]:
        settings = self.plan.settings
        path = self.folder / f"{settings.name}.safetensors"
        drawing = workflow.save(self.plan, self.family, self.folder)  # before the file, with which the run is complete
        proofs: list[Proof] = []

        def save() -> Iterator[str]:
            aside = self.folder / ".unproven" / path.name
            write_atomically(aside, self._file())
            yield path.name
            with self.adapter.at(1.0, self._average()):
                proofs.append(prove(aside, self.plan, self.family, self.context.source, self.adapter))
            aside.replace(path)
            aside.parent.rmdir()
            sync(self.folder)
            yield str(proofs[-1])

        yield from phase("save", 2, save(), lambda: str(proofs[-1]))
        if not proofs[-1].holds:
            yield Warned(message=f"the file will not work everywhere as it was taught: {proofs[-1]}")
        if trainer.average is not None:
            raw = path.with_name(f"{settings.name}-raw.safetensors")
            write_atomically(raw, self._raw())
            yield Warned(message=f"the file holds the running average (train.ema); the last weights are in {raw}")
        if painter and settings.sampling.strengths:
            sheet = self.folder / "samples" / "strengths.png"
            with self.adapter.at(1.0, self._average()):
                drawn = painter.sheet(
                    self.adapter, settings.sampling.strengths, self.context.device, self.context.source.dtype
                )
            preview.save(drawn, sheet)
            yield SheetDrawn(path=str(sheet), strengths=settings.sampling.strengths)
        yield RunFinished(
            update=trainer.updates,
            folder=str(self.folder),
            lora=str(path),
            proof=str(proofs[-1]),
            workflow=drawing,
            seconds=time.perf_counter() - self.began,
        )

    def _raw(self) -> bytes:
        assert self.trainer
        return lora_file.encode(self.plan, self.family, self.adapter, self.dataset, self.trainer.updates)
