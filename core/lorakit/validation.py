"""What a run is measured on while it trains: pictures held out, pictures compared with them, and how often.

Everything here is a pure function of the pictures and the seed, so a plan, a run and a resumed run agree.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from lorakit.captions import without_trigger
from lorakit.dataset import Dataset, Sample
from lorakit.errors import ConfigError

if TYPE_CHECKING:  # plugins that bring a family are loaded for `lorakit --help`, which has no use for settings
    from lorakit.order import Arithmetic
    from lorakit.planned import Planned, PlannedTrain

LEVELS = (0.125, 0.375, 0.625, 0.875)  # middles of the quarters of (0, 1), so their mean is near that of all levels
ENOUGH = 12  # pictures, below which none can be spared
SHARE, FEWEST, MOST = 0.1, 2, 8  # of the pictures that are held out
COMPARED = 4  # pictures looked at where none are held out
BUDGET = 0.1  # of the training time that validation may take where nobody says how often
OFTEN = 20  # validations that are worth having where they are cheap
FORWARD, RECOMPUTED = 3, 4  # passes without a gradient that one with it takes the time of; with recomputing


# -- which pictures ----------------------------------------------------------------------------------------------


def split(dataset: Dataset, pictures: int | str, seed: int) -> Dataset:
    """The dataset with some of its pictures held out: by share of each folder, none of which loses its last one."""
    number = _number(len(dataset.samples)) if isinstance(pictures, str) else pictures
    chosen = frozenset(_chosen(dataset.samples, number, f"held out {seed}", spare=True))
    if isinstance(pictures, int) and len(chosen) < pictures:
        raise ConfigError(
            f"validation.pictures = {pictures} of {len(dataset.samples)} pictures cannot be held out",
            where="validation.pictures",
            why=f"every folder keeps at least one picture to train on, which leaves {len(chosen)}",
            fix="Hold out fewer, or say 'auto'.",
        )
    kept = tuple(sample for place, sample in enumerate(dataset.samples) if place not in chosen)
    held_out = tuple(sample for place, sample in enumerate(dataset.samples) if place in chosen)
    return replace(dataset, samples=kept, held_out=held_out)


def _number(pictures: int) -> int:
    return 0 if pictures < ENOUGH else min(MOST, max(FEWEST, round(SHARE * pictures)))


def _chosen(samples: Sequence[Sample], number: int, draw: str, *, spare: bool = False) -> list[int]:
    """`number` places among the samples, or all that there are: by share of each folder, at random within it.

    Where `spare`, every folder keeps one.
    """
    folders: dict[str, list[int]] = {}
    for place, sample in enumerate(samples):
        folders.setdefault(sample.folder, []).append(place)
    room = {name: len(places) - spare for name, places in folders.items()}
    found: list[int] = []
    for name, share in _shares({name: len(places) for name, places in folders.items()}, room, number).items():
        found += random.Random(f"{draw} {name}").sample(folders[name], share)
    return sorted(found)


def _shares(sizes: Mapping[str, int], room: Mapping[str, int], number: int) -> dict[str, int]:
    """How many of `number` fall to each folder: one after another to the folder that is furthest behind its share."""
    given = dict.fromkeys(sizes, 0)
    for _ in range(min(number, sum(room.values()))):
        behind = {name: (given[name] + 0.5) / size for name, size in sizes.items() if given[name] < room[name]}
        given[min(behind, key=lambda name: (behind[name], name))] += 1
    return given


@dataclass(frozen=True, slots=True)
class Exam:
    """What a run is measured on: pictures never trained on, as many that are, and prompts that concern neither.

    `canvas` is the sample whose shape and references the prompts are given.
    """

    held_out: tuple[Sample, ...] = ()
    compared: tuple[Sample, ...] = ()
    prompts: tuple[str, ...] = ()
    triggers: tuple[str, ...] = ()

    @property
    def asked(self) -> tuple[Sample, ...]:
        """The pictures that are also tried without their trigger word."""
        return tuple(sample for sample in self.held_out or self.compared if self.bare(sample) is not None)

    @property
    def canvas(self) -> Sample:
        """The first of the pictures that are trained on."""
        return self.compared[0]

    @property
    def passes(self) -> int:
        """Pictures through the model for one validation, without gradients."""
        pictures = len(self.held_out) + len(self.compared) + len(self.asked) + len(self.prompts)
        return len(LEVELS) * pictures

    def bare(self, sample: Sample) -> str | None:
        """The sample's caption without its trigger word; None where it holds none."""
        for trigger in self.triggers:
            caption = without_trigger(sample.caption, trigger)
            if caption != sample.caption:
                return caption
        return None


def exam(dataset: Dataset, settings: Planned) -> Exam:
    """What a run over these pictures is measured on; nothing where nothing is validated."""
    if not settings.validation.every:
        return Exam()
    triggers = [settings.trigger, *(one.trigger for one in settings.data)]
    return looked_at(dataset, settings.validation.prompts, triggers, settings.seed)


def looked_at(dataset: Dataset, prompts: Sequence[str], triggers: Sequence[str], seed: int) -> Exam:
    """What a run is measured on, wherever that is asked."""
    if not dataset.samples:
        return Exam()
    chosen = _chosen(dataset.samples, len(dataset.held_out) or COMPARED, f"compared {seed}")
    compared = tuple(dataset.samples[place] for place in chosen)
    return Exam(dataset.held_out, compared, tuple(prompts), tuple(dict.fromkeys(filter(None, triggers))))


# -- how often ---------------------------------------------------------------------------------------------------


def cadence(one: Exam, train: PlannedTrain, passes: int, save: int | str) -> tuple[int | str, str]:
    """How often to validate where nobody says, and why: at checkpoints, as often as a tenth of the time allows."""
    if not passes:
        return "epoch", "no pictures are named"
    work = passes * (RECOMPUTED if train.gradient_checkpointing else FORWARD)
    times = min(OFTEN, int(BUDGET * work / max(1, one.passes)) - 1)  # the one before the first update besides
    because = f"about {BUDGET:.0%} of the passes' time at most, beside checkpoints"
    if not isinstance(save, int) or not save:
        epochs = math.ceil(train.epochs / max(1, times))
        return ("epoch" if epochs == 1 else f"{epochs} epochs"), because
    checkpoints = train.updates / save
    if times >= checkpoints:
        parts = max(part for part in range(1, save + 1) if save % part == 0 and part * checkpoints <= times)
        return save // parts, because
    return save * math.ceil(checkpoints / max(1, times)), because


def is_due(update: int, every: int | str, sums: Arithmetic, accumulation: int) -> bool:
    """Whether there is a validation after `update`: before the first, after the last, and as often as planned."""
    if not every:
        return False
    if update in (0, sums.updates):
        return True
    if isinstance(every, int):
        return update % every == 0
    epochs = 1 if every == "epoch" else int(every.split()[0])
    batches = epochs * sums.batches_per_epoch
    return update * accumulation // batches > (update - 1) * accumulation // batches


def times(every: int | str, sums: Arithmetic, accumulation: int) -> int:
    """How often a whole run is validated."""
    return sum(is_due(update, every, sums, accumulation) for update in range(sums.updates + 1))
