"""The ladders of advice."""

import pytest

from lorakit.advice import loss_spikes, out_of_memory


@pytest.fixture
def plan(kit, asked):
    def make(**more):
        return kit.plan({**asked, **more})

    return make


def test_memory_in_the_order_worth_trying(plan):
    made = plan(train={"batch_size": 2, "resolution": 1024, "gradient_checkpointing": False}, lora={"rank": 64})
    said = list(out_of_memory(made, unknown))
    order = ["batch_size", "int8", "resolution", "checkpointing", "rank", "more memory"]
    places = [next(place for place, line in enumerate(said) if word in line) for word in order]
    assert places == sorted(places)
    assert "768" in next(line for line in said if "train.resolution" in line)


def unknown(changes):
    """What nobody tells the size of saves nobody knows how much."""


def test_each_step_says_what_it_saves(plan):
    made = plan(train={"batch_size": 2, "resolution": 1024, "gradient_checkpointing": False}, lora={"rank": 64})
    sizes = {"batch_size": 3e9, "name": 20.4e9, "resolution": 1.5e9, "gradient_checkpointing": 40e6, "rank": -1.0}

    def saves(changes):
        (section,) = changes.values()
        return sizes[next(iter(section))]

    said = list(out_of_memory(made, saves))
    ends = [line.rpartition(": saves about ")[2] for line in said if "saves" in line]
    assert ends == ["3 GB", "20.4 GB", "1.5 GB", "40 MB"]
    assert not any("lora.rank" in line for line in said)  # what saves nothing is not advised


def test_accumulation_is_never_offered_as_a_saving(plan):
    for accumulation in (1, 8):
        said = list(out_of_memory(plan(train={"accumulation": accumulation}), unknown))
        assert not any(line.startswith("train.accumulation") for line in said)
        assert "train.accumulation does not help" in said[-1]


def test_what_the_plan_does_already_is_left_out(plan):
    said = " ".join(out_of_memory(plan(train={"resolution": 512}), unknown))
    assert "batch_size" not in said
    assert "resolution" not in said
    assert "checkpointing" not in said


def test_loss_spikes_start_with_the_learning_rate(plan):
    said = list(loss_spikes(plan(optimizer={"learning_rate": 4e-4})))
    assert said[0].startswith("optimizer.learning_rate = 0.0002")
    assert "pictures and captions" in said[-1]
