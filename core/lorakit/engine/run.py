"""A plan carried out, from the first file to the proof, as a stream of events."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path

from lorakit import workflow
from lorakit.alarms import Watch
from lorakit.control import Control
from lorakit.engine import checkpoint, memory, preview
from lorakit.engine.attended import Attended
from lorakit.engine.cache import Cache, sync, write_atomically
from lorakit.engine.checking import Checking
from lorakit.engine.faster import Faster
from lorakit.engine.gallery import Gallery
from lorakit.engine.keeping import Keeper
from lorakit.engine.loading import load_model
from lorakit.engine.loop import Trainer
from lorakit.engine.material import Material, draws, gather
from lorakit.engine.objective import make_scheduler
from lorakit.engine.phases import Context, StopAsked, Work, phase
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
    Event,
    PhaseFinished,
    PhaseStarted,
    RunFinished,
    RunStarted,
    RunStopped,
    UpdateFinished,
    Verb,
    Warned,
)
from lorakit.order import AHEAD, Turn, turns
from lorakit.plan import Plan
from lorakit.registry import Shelves

NOTHING_DRAWN = (
    "this run draws nothing: it has no sampling.prompts, or sampling.every is 0 and sampling.strengths empty, so that "
    "nothing was encoded to draw with"
)
NOT_ALONE = (
    "the base is sharded and no process draws alone: previews come when sampling.every says, and `lorakit sample` "
    "draws with a checkpoint"
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
        self._started: deque[Sequence[Turn]] = deque()  # the batches of updates that were not told of
        self.gallery: Gallery | None = None
        self.watch = Watch(plan, savings(plan, self.family, shelves))
        control.begin({"sample": why} if (why := self._draws_nothing()) else {})

    def _draws_nothing(self) -> str:
        """Why nothing can be drawn whenever somebody asks for it, if it cannot."""
        return NOTHING_DRAWN if not draws(self.plan) else NOT_ALONE if self.ranks.lockstep else ""

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
            yield from self._attended(start)
        except StopAsked:
            self.ranks.leave(None, self.control.reason)
            if self.trainer:
                self.keeper.save_now()
            yield RunStopped(update=self._done(start), reason=self.control.reason, folder=str(self.folder))
        except BaseException as error:
            self.ranks.leave(error, "asked to stop")
            with suppress(Exception):  # what went wrong first is what is told
                if self.trainer:
                    self.keeper.save_now()
            if isinstance(error, NotFiniteError):
                yield self.watch.raised("not finite", self._done(start) + 1, f"{error.what}; {error.why}")
            if not memory.is_exhausted(error):
                raise
            smaller = self.watch.smaller()
            told = memory.exhausted(self.device, error, self._done(start), smaller)
            yield self.watch.raised("out of memory", self._done(start), told.what, smaller)
            raise told from error

    def _attended(self, start: int) -> Generator[Event, None, None]:
        try:
            attended = Attended(self.control, self._ready, self._serve, lambda: self._done(start))
            yield from attended.events(self._work(start))
        except StopAsked:
            if self.trainer:
                yield from self._told(self.trainer)
            raise

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
        self.validator = Validator(trainer, material.exam(), self.context.begin_pass)
        yield from self._train(trainer, material)
        yield from self._finish(trainer)

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
        self.trainer, self.keeper = trainer, Keeper(self.plan, self.family, self.dataset, trainer)
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
        settings = self.plan.settings
        yield PhaseStarted(phase="train", total=settings.train.updates)
        self.checking = Checking(self.plan, self.family, self.shelves, self.context.device)
        began = time.perf_counter()
        if self.ranks.said(trainer.updates not in validated(self.folder)):  # it may have been before a stop
            yield from self.validator.due()
        if trainer.updates and self.gallery:  # a stop may have come while they were drawn
            yield from self.gallery.due(missing=True)
        self._then = time.perf_counter()
        for batches in self._foreseen(trainer, material):
            self.context.check()
            self._started.append(batches)
            yield from self.faster.start(trainer, batches, material.item)
            yield from self._told(trainer, lag=0 if self._is_due(trainer.updates) else 1)
        seconds = time.perf_counter() - began
        graphs = f"; {trainer.graphs}" if trainer.graphs else ""
        note = f"{trainer.updates} updates{self.validator.share(seconds)}{graphs}"
        yield PhaseFinished(phase="train", seconds=seconds, note=note)

    def _told(self, trainer: Trainer, lag: int = 0) -> Iterator[Event]:
        """What there is to say of the updates that were started, all but the last `lag`, and what is due after them."""
        for step in trainer.done(lag if trainer.guard else 0):
            batches = self._started.popleft()
            now, passes = time.perf_counter(), batches[-1].first_pass + len(batches[-1].samples)
            done = UpdateFinished(
                update=step.update,
                passes=passes,
                epoch=passes / self.dataset.passes,
                loss=step.loss,
                learning_rate=step.learning_rate,
                grad_norm=step.grad_norm,
                seconds=now - self._then,
                memory=memory.peak(self.context.device),
            )
            yield done
            yield from self.checking.after(done)
            yield from self.faster.after(trainer, done, batches)
            spilled = memory.spilled(self.device) if self.watch.looks_at_memory(done.update) else 0
            yield from self.watch.after(done, step.passes, step.reach, spilled)
            if step.update == trainer.updates:  # else the next is under way, and nothing is due
                yield from self._at(step.update)
            self._then = time.perf_counter()

    def _foreseen(self, trainer: Trainer, material: Material) -> Iterator[Sequence[Turn]]:
        """The batches of every update to come, worked out ahead some updates at a time."""
        coming = turns(self.dataset, self.plan.settings.train, self.plan.settings.seed, trainer.updates)
        while ahead := list(islice(coming, max(1, AHEAD * self.ranks.count // self.plan.arithmetic.effective_batch))):
            trainer.foresee(ahead, material.item)
            yield from ahead

    def _is_due(self, update: int) -> bool:
        """Whether anything is done after an update, before the next is started."""
        drawn = self.gallery is not None and self.gallery.is_due(update)
        return (
            self.keeper.is_due(update)
            or self.validator.is_due(update)
            or drawn
            or update == self.plan.arithmetic.updates
        )

    def _at(self, update: int) -> Iterator[Event]:
        """The checkpoint, the validation and the previews that are due after `update`."""
        if self.ranks.first and self.keeper.is_due(update):
            yield from self.keeper.checkpoint()
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
            yield from self.keeper.checkpoint()

    def _done(self, start: int = 0) -> int:
        return self.trainer.updates if self.trainer else start

    def _finish(self, trainer: Trainer) -> Iterator[Event]:
        """The file, proven, by the first process, and the sheet of strengths by all."""
        saved = None
        if self.ranks.first:
            saved = yield from self._saved(trainer)
        if self.gallery:
            yield from self.gallery.sheet()
        if saved:
            path, proof, drawing = saved
            yield RunFinished(
                update=trainer.updates,
                folder=str(self.folder),
                lora=str(path),
                proof=str(proof),
                workflow=drawing,
                seconds=time.perf_counter() - self.began,
            )

    def _saved(self, trainer: Trainer) -> Work[tuple[Path, Proof, str]]:
        """Where the file lies, its proof, and its workflow."""
        settings = self.plan.settings
        path = self.folder / f"{settings.name}.safetensors"
        drawing = workflow.save(self.plan, self.family, self.folder)  # before the file, with which the run is complete
        proofs: list[Proof] = []

        def save() -> Iterator[str]:
            aside = self.folder / ".unproven" / path.name
            write_atomically(aside, self.keeper.file())
            yield path.name
            with self.adapter.at(1.0, trainer.average):
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
            write_atomically(raw, self.keeper.raw())
            yield Warned(message=f"the file holds the running average (train.ema); the last weights are in {raw}")
        return path, proofs[-1], drawing
