"""The checkpoints of a run that could be recommended: their files, what was measured of them, what they drew."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lorakit.errors import RunError
from lorakit.events import Validated
from lorakit.evidence.likeness import Likeness, Similar
from lorakit.evidence.previews import Judged, Previews
from lorakit.history import History

MEASURED = ("loss", "loss_error", "trigger", "trigger_error", "drift", "norm", "largest_norm")
"""What is looked at of a validation. The loss on training pictures and the loss of training itself are not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A checkpoint: `file` is its LoRA, `measured` None where no validation came after its update.

    `similar` is what judges say of its previews; it is told, and decides nothing.
    """

    update: int
    file: Path
    measured: Validated | None
    previews: tuple[Judged, ...] = ()
    similar: tuple[Similar, ...] = ()

    @property
    def broken(self) -> str:
        """Why it is not to be used, whatever else is told of it; empty where nothing says so."""
        if self.measured is not None:
            for name in MEASURED:
                value = getattr(self.measured, name)
                if value is not None and not math.isfinite(value):
                    return f"its {name.replace('_', ' ')} is no finite number"
            if self.measured.largest_norm == 0:
                return "it changes nothing: every layer of the adapter is zero"
        faults = [one for one in self.previews if one.fault]
        if faults and 2 * len(faults) >= len(self.previews):
            named = "; ".join(f"{one.path.name} is {one.fault}" for one in faults[:3])
            return f"{len(faults)} of its {len(self.previews)} previews show nothing ({named})"
        return ""


def candidates(history: History, previews: Previews, judged: Sequence[Likeness] = ()) -> Sequence[Candidate]:
    """The run's checkpoints in order; RunError where there is none, or where none was ever measured."""
    validations = {one.update: one for one in history.validations}
    found = [
        Candidate(
            update=update,
            file=file,
            measured=validations.get(update),
            previews=previews.of(update),
            similar=tuple(one.of(update) for one in judged),
        )
        for update, file in history.checkpoints().items()
    ]
    if not found:
        raise RunError(
            f"the run in {history.folder} has no checkpoint",
            why="none was saved yet, or they were removed",
            fix=f"`lorakit resume {history.folder}` goes on with it.",
        )
    if not validations:
        raise RunError(
            f"the run in {history.folder} was never validated, so nothing tells its checkpoints apart",
            where="validation.every",
            why="the loss of training is no measure of quality and is never used",
            fix="Train again with validation.every left out, or set to `epoch`, and judge this one by its previews.",
        )
    if not any(one.measured for one in found):
        raise RunError(
            f"none of the {len(found)} checkpoints in {history.folder} was measured",
            where="validation.every and save.every",
            why="validations came after other updates than checkpoints",
            fix="Train again with both set to the same.",
        )
    return found
