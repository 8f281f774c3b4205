"""In which order pictures are shown: a pure function of the seed."""

import random
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorakit.buckets import Fit, Shape
from lorakit.dataset import Dataset, Sample
from lorakit.order import arithmetic, batches_per_epoch, epoch, share, turns
from lorakit.plan import agree

SHAPES = (Shape(64, 64), Shape(96, 48), Shape(48, 96))


def dataset(*pictures):
    """Pictures given as (shape number, repeats)."""
    samples = []
    for number, (shape, repeats) in enumerate(pictures):
        size = SHAPES[shape]
        samples.append(Sample(Path(f"{number}.png"), "a cat", size, Fit(size, size, 0, 0), repeats, "folder"))
    return Dataset(tuple(samples))


def lasting(data, epochs=None, updates=None, batch_size=1, accumulation=1):
    """What a plan's [train] says of length."""
    agreed, meant = agree(updates, epochs, batches_per_epoch(data, batch_size), accumulation)
    return SimpleNamespace(
        updates=agreed, epochs=meant, global_batch=batch_size, accumulation=accumulation, group_by_length=False
    )


DATASETS = st.lists(st.tuples(st.integers(0, 2), st.integers(1, 4)), min_size=1, max_size=8).map(lambda p: dataset(*p))
SIZES = st.integers(1, 5)
SEEDS = st.integers(0, 2**63 - 1)


@given(DATASETS, SIZES, SEEDS, st.integers(0, 3), st.booleans())
def test_an_epoch_shows_every_picture_its_repeats_and_mixes_no_buckets(data, batch_size, seed, number, by_length):
    batches = epoch(data, batch_size, seed, number, by_length=by_length)
    shown = Counter(sample for batch in batches for sample in batch)
    assert shown == {position: sample.repeats for position, sample in enumerate(data.samples)}
    assert len(batches) == batches_per_epoch(data, batch_size)
    for batch in batches:
        assert 1 <= len(batch) <= batch_size
        assert len({data.samples[sample].fit.shape for sample in batch}) == 1


def test_the_order_is_the_seeds_and_the_epochs_own():
    data = dataset(*[(0, 2)] * 10)
    orders = {seed: epoch(data, 1, seed, 0) for seed in range(3)}
    assert orders[0] == epoch(data, 1, 0, 0)
    assert len({tuple(order) for order in orders.values()}) == 3
    assert epoch(data, 1, 0, 1) != orders[0]


def padding(data, batches):
    """Letters that captions are short of the longest of their batch, over all that are read."""
    lengths = [[len(data.samples[sample].caption) for sample in batch] for batch in batches]
    read = sum(max(some) * len(some) for some in lengths)
    return 1 - sum(map(sum, lengths)) / read


@pytest.mark.parametrize("seed", range(3))
def test_batches_by_length_are_padded_less_and_are_others_in_each_epoch(seed):
    chance = random.Random(seed)
    bare = dataset(*[(0, 1)] * 100)
    data = Dataset(tuple(replace(one, caption="a" * chance.randint(20, 400)) for one in bare.samples))
    plain, sorted_ = (epoch(data, 4, seed, 0, by_length=by_length) for by_length in (False, True))
    assert padding(data, plain) > 0.3
    assert padding(data, sorted_) < 0.12
    again = epoch(data, 4, seed, 1, by_length=True)
    assert not {frozenset(batch) for batch in again} & {frozenset(batch) for batch in sorted_}


def test_the_order_does_not_change_between_versions():
    # a run that is resumed by a later Python or lorakit must go on in the order that it began with
    data = dataset((0, 1), (0, 1), (0, 1), (1, 2))
    assert epoch(data, 2, seed=7, number=0) == [(2, 1), (0,), (3, 3)]
    assert epoch(data, 2, seed=7, number=0, by_length=True) == [(2, 1), (0,), (3, 3)]  # all are as long


@given(DATASETS, SIZES, SIZES, SEEDS, st.floats(0.1, 3), st.integers(0, 6))
def test_turns_from_any_update_are_the_tail_of_the_whole(data, batch_size, accumulation, seed, epochs, start):
    train = lasting(data, epochs, batch_size=batch_size, accumulation=accumulation)
    whole = list(turns(data, train, seed))
    assert list(turns(data, train, seed, start)) == whole[start:]


@given(DATASETS, SIZES, SIZES, SEEDS, st.integers(1, 3))
def test_whole_epochs_number_every_pass_once_however_they_are_batched(data, batch_size, accumulation, seed, epochs):
    train = lasting(data, epochs, batch_size=batch_size, accumulation=accumulation)
    flat = [turn for update in turns(data, train, seed) for turn in update]
    numbers = [turn.first_pass + place for turn in flat for place in range(len(turn.samples))]
    assert numbers == list(range(epochs * data.passes))
    assert [turn.epoch for turn in flat] == sorted(turn.epoch for turn in flat)
    for turn in flat:
        assert turn.epoch == turn.first_pass // data.passes


@given(DATASETS, SIZES, SIZES, SEEDS, st.integers(1, 20))
def test_a_run_counted_in_updates_has_them_all_full(data, batch_size, accumulation, seed, updates):
    train = lasting(data, updates=updates, batch_size=batch_size, accumulation=accumulation)
    assert [len(update) for update in turns(data, train, seed)] == [accumulation] * updates


def test_the_last_update_of_a_run_counted_in_epochs_may_be_partial():
    data = dataset((0, 10))
    train = lasting(data, epochs=1, accumulation=4)
    assert [len(update) for update in turns(data, train, 0)] == [4, 4, 2]
    assert train.updates == 3


def test_updates_run_across_epochs():
    data = dataset((0, 3))
    train = lasting(data, epochs=2, accumulation=2)
    assert [[turn.epoch for turn in update] for update in turns(data, train, 0)] == [[0, 0], [0, 1], [1, 1]]


@given(DATASETS, SIZES, SIZES, SEEDS, st.integers(1, 3))
def test_the_arithmetic_is_what_happens(data, batch_size, accumulation, seed, epochs):
    train = lasting(data, epochs, batch_size=batch_size, accumulation=accumulation)
    meant = arithmetic(data, train, seed)
    updates = list(turns(data, train, seed))
    assert meant.updates == len(updates)
    assert meant.batches == sum(len(update) for update in updates)
    assert meant.passes == sum(len(turn.samples) for update in updates for turn in update)


@given(DATASETS, SIZES, SEEDS, st.integers(1, 20))
def test_passes_are_exact_in_the_middle_of_an_epoch_too(data, batch_size, seed, updates):
    train = lasting(data, updates=updates, batch_size=batch_size)
    shown = sum(len(turn.samples) for update in turns(data, train, seed) for turn in update)
    assert arithmetic(data, train, seed).passes == shown


def test_the_seeds_arithmetic():
    data = dataset(*[(0, 40)] * 70, *[(1, 20)] * 30)
    one, ten = (arithmetic(data, lasting(data, epochs=epochs, accumulation=4), 0) for epochs in (1, 10))
    assert (ten.images, ten.passes_per_epoch, ten.batches_per_epoch) == (100, 3400, 3400)
    assert (ten.updates_per_epoch, one.updates, ten.updates) == (850, 850, 8500)
    assert (ten.passes, ten.batches, ten.effective_batch) == (34000, 34000, 4)
    assert ten.buckets == (("64x64", 2800), ("96x48", 600))


def test_nothing_to_show():
    train = lasting(dataset(), epochs=10)
    assert list(turns(dataset(), train, 0)) == []
    assert arithmetic(dataset(), train, 0).passes == 0


@pytest.mark.parametrize("repeats", [1, 7])
def test_pictures_of_one_bucket_share_batches_across_repeats(repeats):
    assert batches_per_epoch(dataset((0, repeats), (0, repeats)), 2) == repeats


@given(DATASETS, SIZES, st.integers(1, 5), SEEDS)
def test_processes_share_a_batch_evenly_and_show_every_picture_once(data, batch_size, count, seed):
    """Shares are disjoint, keep the numbers of their passes, and are no larger than what a GPU was promised."""
    shown, numbers = Counter(), []
    train = lasting(data, epochs=1.0, batch_size=batch_size * count)
    for (turn,) in turns(data, train, seed):
        shares = [share(turn, number, count) for number in range(count)]
        sizes = [len(one.samples) for one in shares]
        assert tuple(sample for one in shares for sample in one.samples) == turn.samples
        assert max(sizes) <= batch_size
        assert max(sizes) - min(sizes) <= 1
        for one in shares:
            shown.update(one.samples)
            numbers += range(one.first_pass, one.first_pass + len(one.samples))
    assert shown == {place: sample.repeats for place, sample in enumerate(data.samples)}
    assert sorted(numbers) == list(range(data.passes))
