"""What a run keeps of its adapter: the file that others load, and checkpoints to go on from."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

from lorakit.changes import fixed
from lorakit.dataset import Dataset
from lorakit.engine import checkpoint, lora_file
from lorakit.engine.loop import Trainer
from lorakit.errors import NotFiniteError
from lorakit.events import CheckpointRemoved, CheckpointSaved, Event
from lorakit.family import Family
from lorakit.order import is_due
from lorakit.plan import Plan


class Keeper:
    """Keeps what a trainer has come to, in the folder of its run."""

    def __init__(self, plan: Plan, family: Family, dataset: Dataset, trainer: Trainer) -> None:
        self._plan, self._family, self._dataset, self._trainer = plan, family, dataset, trainer

    def is_due(self, update: int) -> bool:
        """Whether a checkpoint is due after an update."""
        settings, sums = self._plan.settings, self._plan.arithmetic
        every, last = settings.save.every, update == settings.train.updates
        return bool(every) and (last or is_due(update, every, sums, settings.train.accumulation))

    def file(self) -> bytes:
        """The file as it is used: of the running average, where there is one."""
        with self._trainer.adapter.at(1.0, self._trainer.average):
            return self.raw()

    def raw(self) -> bytes:
        """The file of the last weights."""
        trainer = self._trainer
        return lora_file.encode(self._plan, self._family, trainer.adapter, self._dataset, trainer.updates)

    def checkpoint(self) -> Iterator[Event]:
        """A checkpoint of where training stands, and room made for it."""
        yield self._saved()
        for gone in checkpoint.prune(self._plan.folder, self._plan.settings.save.keep):
            yield CheckpointRemoved(update=gone, folder=str(checkpoint.folder_of(self._plan.folder, gone)))

    def save_now(self) -> None:
        """A checkpoint of where training stands, unless an update was cut in the middle or nothing is new."""
        trainer = self._trainer
        with suppress(NotFiniteError):  # what came before it is kept
            trainer.settle()
        if not trainer.ranks.first or trainer.stepping or not trainer.updates:
            return
        if trainer.updates not in checkpoint.saved(self._plan.folder):
            self._saved()

    def _saved(self) -> CheckpointSaved:
        state = self._trainer.state()
        name = f"{self._plan.settings.name}-{state.update:06d}.safetensors"
        place = checkpoint.save(self._plan.folder, state, name, self.file(), fixed(self._plan))
        return CheckpointSaved(update=state.update, folder=str(place), lora=str(place / name))
