"""In which order pictures are shown: a pure function of the seed, so any point of a run can be found again."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from lorakit.dataset import Dataset

if TYPE_CHECKING:  # plugins that bring a family are loaded for `lorakit --help`, which has no use for settings
    from lorakit.planned import PlannedTrain


AHEAD = 64
"""Passes whose modulation is worked out at once, or those of an update: one transfer of the weights serves them all."""

SORTED = 8
"""Batches among whose pictures captions are sorted by length."""


@dataclass(frozen=True, slots=True)
class Arithmetic:
    """The whole arithmetic of a run, in the units of one another.

    A pass is one picture through the model, a batch several at once on all GPUs together, an update one step of the
    optimizer after `accumulation` batches, an epoch every picture with its repeats once. `references` are counted over
    `images`, `letters` are those of a caption as shown, on average.
    """

    images: int
    passes_per_epoch: int
    batches_per_epoch: int
    updates_per_epoch: float
    batches: int
    updates: int
    epochs: float
    passes: int
    effective_batch: int
    buckets: tuple[tuple[str, int], ...] = ()
    references: int = 0
    letters: int = 0


def batches_per_epoch(dataset: Dataset, batch_size: int) -> int:
    """Batches in an epoch; pictures of one bucket share batches, and the last of a bucket may be smaller."""
    return sum(-(-count // batch_size) for count in dataset.buckets().values())


def arithmetic(dataset: Dataset, train: PlannedTrain, seed: int) -> Arithmetic:
    """The run's arithmetic; `train.updates` and `train.epochs` agree already."""
    batches = batches_per_epoch(dataset, train.global_batch)
    total = min(train.updates * train.accumulation, max(1, round(train.epochs * batches))) if batches else 0
    return Arithmetic(
        images=len(dataset.samples),
        passes_per_epoch=dataset.passes,
        batches_per_epoch=batches,
        updates_per_epoch=batches / train.accumulation,
        batches=total,
        updates=train.updates,
        epochs=train.epochs,
        passes=_passes(dataset, train, seed, total),
        effective_batch=train.global_batch * train.accumulation,
        buckets=tuple((str(bucket), count) for bucket, count in dataset.buckets().items()),
        references=sum(len(sample.references) for sample in dataset.samples),
        letters=round(sum(len(one.caption) * one.repeats for one in dataset.samples) / max(1, dataset.passes)),
    )


def is_due(update: int, every: int | str, sums: Arithmetic, accumulation: int) -> bool:
    """Whether something that is done every so many updates, or at the end of each epoch, is due after `update`."""
    if isinstance(every, int):
        return update % every == 0
    batches = sums.batches_per_epoch
    return update * accumulation // batches > (update - 1) * accumulation // batches


def _passes(dataset: Dataset, train: PlannedTrain, seed: int, batches: int) -> int:
    """Pictures shown in the first `batches` batches of a run."""
    whole, rest = divmod(batches, max(1, batches_per_epoch(dataset, train.global_batch)))
    by_length = train.group_by_length
    begun = epoch(dataset, train.global_batch, seed, whole, by_length=by_length)[:rest] if rest else []
    return whole * dataset.passes + sum(map(len, begun))


def epoch(
    dataset: Dataset, batch_size: int, seed: int, number: int, *, by_length: bool = False
) -> list[tuple[int, ...]]:
    """The batches of epoch `number`, as indices into the samples: every picture `repeats` times, buckets unmixed.

    Where they go `by_length`, a batch is of captions that are about as long as one another.
    """
    draw = random.Random(f"order {seed} {number}")
    buckets: dict[object, list[int]] = {}
    for position, sample in enumerate(dataset.samples):
        buckets.setdefault(sample.bucket, []).extend([position] * sample.repeats)
    batches: list[tuple[int, ...]] = []
    for members in buckets.values():
        draw.shuffle(members)
        if by_length:
            members = _alike(members, batch_size, dataset)
        batches += [tuple(members[start : start + batch_size]) for start in range(0, len(members), batch_size)]
    draw.shuffle(batches)
    return batches


def _alike(members: Sequence[int], batch_size: int, dataset: Dataset) -> list[int]:
    """Shuffled members sorted by the length of their captions, a few batches at a time, so that chance stays."""
    parts = (members[start : start + batch_size * SORTED] for start in range(0, len(members), batch_size * SORTED))
    return [one for part in parts for one in sorted(part, key=lambda index: len(dataset.samples[index].caption))]


@dataclass(frozen=True, slots=True)
class Turn:
    """One batch's turn: which samples, and the number of the first of its passes since the run began.

    Where it is `borrowed`, it is passed so that others can pass theirs, and teaches nothing.
    """

    samples: tuple[int, ...]
    first_pass: int
    epoch: int
    borrowed: bool = False


def share(turn: Turn, number: int, count: int) -> Turn:
    """What process `number` of `count` takes of a batch: shares differ by one picture at most, and may be empty.

    Passes keep their numbers, and with them their draws, however many processes there are.
    """
    first, end = (-(-len(turn.samples) * place // count) for place in (number, number + 1))
    return Turn(turn.samples[first:end], turn.first_pass + first, turn.epoch)


def company(turn: Turn) -> Turn:
    """One picture of a batch for a process that has no share of it, and must pass something along with the others."""
    return replace(turn, samples=turn.samples[:1], borrowed=True)


def first_share(dataset: Dataset, train: PlannedTrain, seed: int) -> Turn:
    """What the first process takes of the first batch of all."""
    return share(next(turns(dataset, train, seed))[0], 0, train.gpus)


def turns(dataset: Dataset, train: PlannedTrain, seed: int, start: int = 0) -> Iterator[Sequence[Turn]]:
    """The batches of every update after update `start`, `accumulation` of them each; the last may have fewer.

    Passes are numbered through the run, so draws that depend on the number do not depend on how passes are batched.
    """
    stream = _stream(dataset, train, seed, start * train.accumulation)
    rest = arithmetic(dataset, train, seed).batches - start * train.accumulation
    while rest > 0:
        size = min(train.accumulation, rest)
        yield [next(stream) for _ in range(size)]
        rest -= size


def _stream(dataset: Dataset, train: PlannedTrain, seed: int, skip: int) -> Iterator[Turn]:
    """Every batch of the run after the first `skip`; endless."""
    number, offset = divmod(skip, batches_per_epoch(dataset, train.global_batch))
    while True:
        first, by_length = number * dataset.passes, train.group_by_length
        for position, batch in enumerate(epoch(dataset, train.global_batch, seed, number, by_length=by_length)):
            if position >= offset:
                yield Turn(batch, first, number)
            first += len(batch)
        offset, number = 0, number + 1
