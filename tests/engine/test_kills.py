"""Whatever is killed, cut or altered, a run can go on, and no finished checkpoint is lost."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from lorakit.engine import checkpoint
from lorakit.errors import RunError
from lorakit.events import RunFinished, RunStarted, UpdateFinished, Warned
from tests.engine.kills import CPU, made

ROOT = Path(__file__).parents[2]


def test_forty_kills_around_saves(tmp_path):
    command = [sys.executable, "-m", "tests.engine.kills", str(tmp_path / "run"), "40"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    assert (figures["kills"], figures["unusable"], figures["lost"]) == (40, 0, 0)
    assert figures["in_the_middle"] > 4  # the kills were where they matter


@pytest.fixture
def run(tmp_path):
    """A run with checkpoints of updates 1, 2 and 3."""
    for update in (1, 2, 3):
        checkpoint.save(tmp_path, made(update), "x.safetensors", b"the file")
    return tmp_path


def cut(path):
    path.write_bytes(path.read_bytes()[:-1])


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def empty(path):
    path.write_bytes(b"")


@pytest.mark.parametrize("harm", [cut, flip, empty, Path.unlink])
@pytest.mark.parametrize("name", [checkpoint.STATE, checkpoint.FACTS])
def test_the_newest_whole_one_is_found(run, harm, name):
    harm(checkpoint.folder_of(run, 3) / name)
    found = checkpoint.newest(run)
    assert found.update == 2
    assert set(found.damaged) == ({3} if checkpoint.folder_of(run, 3).joinpath(checkpoint.FACTS).exists() else set())
    assert checkpoint.load(run, 2, CPU).update == 2


def test_a_file_that_somebody_changed_is_told_and_does_not_matter(run):
    file = checkpoint.folder_of(run, 3) / "x.safetensors"
    cut(file)
    found = checkpoint.newest(run)
    assert found.update == 3
    assert found.notes == (f"{file} is not as it was written",)
    file.unlink()  # moved to where it is used
    assert checkpoint.newest(run).notes == ()


def test_nothing_is_removed_while_the_newest_is_damaged(run):
    flip(checkpoint.folder_of(run, 3) / checkpoint.STATE)
    assert checkpoint.prune(run, 1) == []
    assert checkpoint.saved(run) == [1, 2, 3]


def test_where_none_is_whole_nothing_is_renamed_and_it_is_told(run):
    for update in (1, 2, 3):
        flip(checkpoint.folder_of(run, update) / checkpoint.STATE)
    with pytest.raises(RunError, match=r"none of the checkpoints .* can be read.*update-000003: state\.safetensors"):
        checkpoint.newest(run)
    assert checkpoint.saved(run) == [1, 2, 3]


def test_a_damaged_one_is_saved_anew_and_the_old_one_kept_aside(run):
    place = checkpoint.folder_of(run, 3)
    flip(place / checkpoint.STATE)
    checkpoint.save(run, made(3), "x.safetensors", b"the file")
    assert checkpoint.newest(run).update == 3
    assert place.with_name(f"{place.name}.damaged").is_dir()


def test_a_run_goes_on_from_the_one_before_and_says_so(kit, make_plan, of_kind):
    plan = make_plan(train={"updates": 4}, sampling={"prompts": []}, save={"every": 1})
    events = kit.train(plan)
    for event in events:
        if isinstance(event, UpdateFinished) and event.update == 3:
            events.close()
    place = checkpoint.folder_of(plan.folder, 3)
    flip(place / checkpoint.STATE)
    events = list(kit.resume(plan.folder))
    assert of_kind(events, RunStarted)[0].resumed_from == 2
    (warned,) = of_kind(events, Warned)
    assert "checkpoint of update 3 is damaged" in warned.message
    assert f"{place.name}.damaged" in warned.message
    assert place.with_name(f"{place.name}.damaged").is_dir()
    assert isinstance(events[-1], RunFinished)
