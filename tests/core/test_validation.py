"""Which pictures are held out and compared, and how often a run is measured."""

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorakit import Kit
from lorakit.buckets import Shape, fit
from lorakit.captions import with_trigger, without_trigger
from lorakit.dataset import Dataset, Sample
from lorakit.errors import ConfigError
from lorakit.order import Arithmetic, arithmetic, turns
from lorakit.plan import Plan
from lorakit.planned import PlannedTrain
from lorakit.validation import COMPARED, LEVELS, is_due, looked_at, split, times
from tests.pictures import picture

FOLDERS = st.lists(st.integers(1, 40), min_size=1, max_size=6)


def dataset(sizes):
    size = Shape(64, 64)
    return Dataset(
        tuple(
            Sample(Path(f"{folder}/{number}.png"), f"sks {number}", size, fit(size, 64, 16), 1 + folder, str(folder))
            for folder, pictures in enumerate(sizes)
            for number in range(pictures)
        )
    )


@given(FOLDERS, st.integers(0, 2**32))
def test_a_tenth_of_the_pictures_is_held_out_two_at_least_and_eight_at_most(sizes, seed):
    whole = dataset(sizes)
    parted = split(whole, "auto", seed)
    room = sum(size - 1 for size in sizes)
    expected = 0 if sum(sizes) < 12 else min(8, max(2, round(sum(sizes) / 10)), room)
    assert len(parted.held_out) == expected


@given(FOLDERS, st.integers(0, 2**32))
def test_nothing_is_lost_nor_in_both_parts_and_the_order_stays(sizes, seed):
    whole = dataset(sizes)
    parted = split(whole, "auto", seed)
    kept, held = set(parted.samples), set(parted.held_out)
    assert not kept & held
    assert tuple(one for one in whole.samples if one in kept) == parted.samples
    assert tuple(one for one in whole.samples if one in held) == parted.held_out
    assert len(kept) + len(held) == len(whole.samples)


@given(FOLDERS, st.integers(0, 2**32))
def test_folders_give_by_their_share_and_keep_one(sizes, seed):
    parted = split(dataset(sizes), "auto", seed)
    given_up = Counter(one.folder for one in parted.held_out)
    number, total = len(parted.held_out), sum(sizes)
    for folder, size in enumerate(sizes):
        assert given_up[str(folder)] < size
        if min(sizes) > 10:  # where no folder is too small to give its share
            assert abs(given_up[str(folder)] - number * size / total) < 1.5


@given(FOLDERS, st.integers(0, 2**32))
def test_the_same_seed_holds_out_the_same_and_wherever_the_folders_lie(sizes, seed):
    assert split(dataset(sizes), "auto", seed) == split(dataset(sizes), "auto", seed)


def test_another_seed_holds_out_others():
    found = {split(dataset([30]), "auto", seed).held_out for seed in range(5)}
    assert len(found) > 1


def test_so_many_as_are_asked_for_or_an_error_that_says_how_many_can_be():
    assert len(split(dataset([5, 3]), 6, 0).held_out) == 6
    with pytest.raises(ConfigError, match="leaves 6"):
        split(dataset([5, 3]), 7, 0)
    assert split(dataset([40]), 0, 0).held_out == ()


def test_the_digest_knows_what_is_held_out_and_is_what_it_was_where_nothing_is():
    whole = dataset([20])
    digests = {split(whole, number, 0).digest() for number in (0, 1, 2)}
    assert len(digests) == 3
    assert split(whole, 0, 0).digest() == whole.digest()


@given(FOLDERS, st.integers(0, 2**32))
def test_as_many_are_compared_as_are_held_out_and_of_those_that_are_trained_on(sizes, seed):
    parted = split(dataset(sizes), "auto", seed)
    exam = looked_at(parted, ("a",), ("sks",), seed)
    assert set(exam.compared) <= set(parted.samples)
    assert len(exam.compared) == min(len(parted.held_out) or COMPARED, len(parted.samples))
    assert exam.asked == (exam.held_out or exam.compared)
    assert exam.passes == len(LEVELS) * (len(exam.held_out) + len(exam.compared) + len(exam.asked) + 1)


def test_held_out_pictures_are_never_shown():
    parted = split(dataset([12, 6]), "auto", 3)
    train = PlannedTrain(updates=40, epochs=40 * 3 / 16, resolution=64, batch_size=2, accumulation=2)
    shown = {index for update in turns(parted, train, 3) for turn in update for index in turn.samples}
    assert {parted.samples[index] for index in shown} == set(parted.samples)
    assert arithmetic(parted, train, 3).images == 16


@pytest.mark.parametrize(
    ("caption", "bare"),
    [
        ("sks, a cat", "a cat"),
        ("a sks cat", "a cat"),
        ("a photo of SKS, sitting", "a photo of, sitting"),
        ("sks", ""),
        ("sksy cat", "sksy cat"),
        ("a cat", "a cat"),
    ],
)
def test_a_caption_loses_its_trigger_and_nothing_else(caption, bare):
    assert without_trigger(caption, "sks") == bare
    assert without_trigger(caption, "") == caption


@given(st.lists(st.sampled_from(["a", "cat", "on", "mat"]), min_size=1).map(" ".join))
def test_a_trigger_that_was_put_before_a_caption_is_taken_away_again(caption):
    assert without_trigger(with_trigger(caption, "sks (1)"), "sks (1)") == caption


def sums(updates, batches):
    return Arithmetic(10, 10, batches, batches / 2, updates * 2, updates, updates * 2 / batches, updates * 2, 2)


@given(st.integers(1, 200), st.integers(1, 30), st.sampled_from(["epoch", "3 epochs", 1, 7, 500]))
def test_a_run_is_measured_before_its_first_update_and_after_its_last(updates, batches, every):
    due = [update for update in range(updates + 1) if is_due(update, every, sums(updates, batches), 2)]
    assert {0, updates} <= set(due)
    assert len(due) == times(every, sums(updates, batches), 2)
    if isinstance(every, int):
        assert set(due) == {0, updates, *range(0, updates + 1, every)}
    assert not times(0, sums(updates, batches), 2)


@pytest.fixture
def many(tmp_path):
    folder = tmp_path / "many"
    for number in range(14):
        picture(folder / f"{number:02}.png", (64, 64), caption=f"a cat, number {number}")
    return folder


@pytest.fixture
def planned(kit: Kit, asked, many):
    def plan(**tables) -> Plan:
        return kit.plan({**asked, "data": [{"folder": str(many)}], **tables})

    return plan


def test_a_plan_lists_what_is_held_out_and_counts_without_it(planned):
    plan = planned()
    assert len(plan.held_out) == 2
    assert plan.arithmetic.images == plan.arithmetic.passes_per_epoch == 12
    assert Plan.from_json(plan.to_json()) == plan
    assert planned(validation={"every": 0}).held_out == ()


def test_few_pictures_are_all_trained_on_and_the_plan_says_so(kit, asked):
    from lorakit.explain import arithmetic as lines

    plan = kit.plan(asked)
    assert plan.held_out == ()
    assert any("no pictures held out (4 pictures are too few to spare any)" in line for line in lines(plan))


@pytest.mark.parametrize(
    ("save", "train"),
    [
        ("epoch", {"epochs": 10}),
        (10, {"updates": 400}),
        (60, {"updates": 60}),
        (0, {"epochs": 40}),
        (7, {"updates": 9}),
    ],
)
@pytest.mark.parametrize("checkpointing", [True, False])
def test_where_nobody_says_a_tenth_of_the_time_goes_to_validation_at_checkpoints(planned, save, train, checkpointing):
    plan = planned(save={"every": save}, train={**train, "gradient_checkpointing": checkpointing})
    every, train_settings = plan.settings.validation.every, plan.settings.train
    number = times(every, plan.arithmetic, train_settings.accumulation)
    passes = len(LEVELS) * (2 + 2 + 2 + 2)
    assert number == 2 or number * passes <= 0.1 * plan.arithmetic.passes * (4 if checkpointing else 3)
    if isinstance(save, int) and save:
        assert isinstance(every, int)
        assert save % every == 0 or every % save == 0


def test_how_often_is_the_persons_to_say(planned):
    assert planned(validation={"every": "2 epochs"}).settings.validation.every == "2 epochs"
    for wrong in ("0 epochs", "often", -1, "2"):
        with pytest.raises(ConfigError, match=r"validation\.every"):
            planned(validation={"every": wrong})


def test_pictures_that_nobody_would_look_at_are_not_held_out(planned):
    with pytest.raises(ConfigError, match="never looked at"):
        planned(validation={"every": 0, "pictures": 3})
