"""A base that is sharded among processes: the same adapter, a part of the memory, and nobody left waiting."""

from __future__ import annotations

import json

import pytest

from lorakit.engine import checkpoint
from lorakit.events import RunStopped, UpdateFinished
from tests.engine.several import SIX, SIX_BY_TWO, asked, codes, facts, off

pytestmark = pytest.mark.slow

SHARDED = {**SIX_BY_TWO, "train__sharding": "sharded"}
thorough = pytest.mark.thorough


def weighed(folder) -> dict[int, list[dict]]:
    """What each process wrote down after each update."""
    files = folder.glob("*.jsonl")
    return {int(one.stem): [json.loads(line) for line in one.read_text().splitlines()] for one in files}


# -- the same result -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "settings", "count", "alone"),
    [
        ("qwen", {"quantization__name": "int8", "train__gradient_checkpointing": True}, 2, 1),
        pytest.param("qwen", {"quantization__name": "int4", "quantization__uncorrected": True}, 2, 1, marks=thorough),
        pytest.param("qwen", {"quantization__name": "int2", "quantization__uncorrected": True}, 2, 1, marks=thorough),
        pytest.param("qwen", {"speed__modulation": "table", "train__accumulation": 2}, 4, 1, marks=thorough),
        pytest.param("qwen", {"lora__dropout": 0.1, "speed__adapter": "plain"}, 2, 2, marks=thorough),
        pytest.param("flux", {"train__gradient_checkpointing": True, "speed__recompute": 1}, 2, 1, marks=thorough),
        pytest.param("sdxl", {"train__gradient_checkpointing": True}, 4, 1, marks=thorough),
    ],
)
def test_a_sharded_base_teaches_what_a_whole_one_does(crew, place, tmp_path, family, settings, count, alone):
    """An epoch is 9 pictures of one shape and 2 of another: of the batch of one, all others but one have nothing.

    What dropout drops depends on how passes are batched, so that it is compared with as many whole bases.
    """
    name = "-".join(map(str, (family, *settings.values(), count)))

    def run(name, processes, **more):
        into = tmp_path / name
        into.mkdir()
        command = asked(place, name, family, **{**SIX, **settings, "train__batch_size": 4 // processes, **more})
        told = crew.run(processes, *command, at={"do": "weigh", "into": str(into)})
        assert codes(told) == [0] * processes, told
        return weighed(into)

    whole = run(f"{name}-whole", alone)[0]
    parts = run(name, count, train__sharding="sharded")
    rounding = 0 if alone == count else 1e-5  # the same passes give the same bits
    assert off(place, f"{name}-whole", name) <= rounding
    assert sorted(parts) == list(range(count))
    assert [len(part) for part in parts.values()] == [6] * count
    for update in range(6):
        for number, block in enumerate(whole[0]["blocks"]):
            theirs = [parts[process][update]["blocks"][number] for process in parts]
            assert {one["digest"] for one in theirs} == {block["digest"]}  # bit for bit, after every update
            assert sum(one["here"] for one in theirs) == pytest.approx(block["all"], rel=0.02)
            assert max(one["here"] for one in theirs) < 1.1 * block["all"] / count
        assert len({tuple(part[update]["gathered"]) for part in parts.values()}) == 1
    batches = 2 if settings.get("train__accumulation") else 1
    blocks, everything = len(whole[0]["blocks"]), sum(block["all"] for block in whole[0]["blocks"])
    gathered = parts[0][1]["gathered"]  # once forward and once backward, whether it is recomputed there or not
    assert len(gathered) == 2 * blocks * batches
    assert sum(gathered) == pytest.approx(2 * everything * batches, rel=0.02)


def test_a_run_goes_on_with_a_whole_base_and_with_a_sharded_one_again(crew, place, whole):
    begun = crew.run(2, *asked(place, "to-and-fro", **{**SHARDED, "train__updates": 2}))
    resume = ["resume", str(place / "runs" / "to-and-fro"), "--set"]
    one = crew.run(1, *resume, "train.updates=4", "--gpus", "1")
    two = crew.run(2, *resume, "train.updates=6", "--gpus", "2", "--set", "train.sharding=sharded")
    assert codes([*begun, *one, *two]) == [0] * 5, (begun, one, two)
    assert "train.sharding = None, was 'sharded'" in one[0].out
    assert "train.sharding = 'sharded', was None" in two[0].out
    assert off(place, whole, "to-and-fro") < 1e-5
    passes = [[event.passes for event in facts(place, name, UpdateFinished)] for name in (whole, "to-and-fro")]
    assert passes[0] == passes[1]


# -- what goes wrong -----------------------------------------------------------------------------------------------

IN_AN_UPDATE = 30
"""Blocks are gathered 4 times to see what shares an input, and 8 times in an update: this is one of the fourth."""


@pytest.mark.parametrize("lost", [1, pytest.param(0, marks=thorough)])
def test_a_process_killed_in_a_pass_ends_the_others_and_the_run_goes_on_after_a_restart(crew, place, whole, lost):
    command = asked(place, f"shard-killed-{lost}", **SHARDED)
    told = crew.run(2, *command, at={"rank": lost, "gather": IN_AN_UPDATE, "do": "kill"})
    assert (told[lost].code, told[1 - lost].code) == (-9, 130 if lost else 0), told
    update = 3 if lost else 2
    assert checkpoint.newest(place / "runs" / f"shard-killed-{lost}").update == update
    again = crew.run(2, *command, TORCHELASTIC_RESTART_COUNT="1")
    assert codes(again) == [0, 0], again
    assert off(place, whole, f"shard-killed-{lost}") < 1e-5


def test_a_process_lost_in_a_pass_is_named_where_nobody_watches(crew, place):
    name = "shard-lost"
    at = {"rank": 1, "gather": IN_AN_UPDATE, "do": "kill"}
    told = crew.run(2, *asked(place, name, **SHARDED), at=at, watched=False)
    assert codes(told) == [1, -9], told
    assert "process 1 on" in told[0].err
    assert "was lost" in told[0].err
    assert checkpoint.newest(place / "runs" / name).update == 3


@pytest.mark.parametrize("number", [1, pytest.param(0, marks=thorough)])
def test_an_error_in_a_pass_of_one_process_stops_all_saved(crew, place, number):
    name = f"shard-broken-{number}"
    at = {"rank": number, "gather": IN_AN_UPDATE, "do": "raise"}
    told = crew.run(2, *asked(place, name, **SHARDED), at=at, watched=False)
    assert codes(told) == [1, 1], told
    assert "something broke" in told[0].err
    assert "Traceback" not in told[1 - number].err
    assert checkpoint.newest(place / "runs" / name).update == 3


def test_a_stop_asked_of_one_process_comes_between_two_batches_of_all(crew, place):
    name = "shard-stopped"
    at = {"rank": 1, "gather": IN_AN_UPDATE, "do": "terminate"}
    told = crew.run(2, *asked(place, name, **SHARDED), at=at)
    assert told[0].code == 130, told
    (stopped,) = facts(place, name, RunStopped)
    assert (stopped.reason, stopped.update) == ("SIGTERM", 4)  # the pass that was under way came to its end
    assert checkpoint.newest(place / "runs" / name).update == 4


def test_what_would_stay_whole_in_every_process_is_refused(crew, place):
    command = asked(place, "stubborn", **{**SHARDED, "quantization__name": "int8"})
    told = crew.run(2, *command, at={"do": "hold whole"})
    assert codes(told) == [2, 2], told
    assert "transformer_blocks.0, held as int8, cannot be sharded" in told[0].err
    assert "weight stays whole" in told[0].err
