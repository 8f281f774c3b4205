"""Ctrl-C and SIGTERM save and leave with 130, a kill leaves the newest checkpoint; resume goes on from there."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lorakit.engine import checkpoint

PICTURES = Path(__file__).parents[2] / "docs" / "examples" / "pictures"
QUIET = {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "number",
    [signal.SIGINT, signal.SIGTERM, pytest.param(signal.SIGKILL, marks=pytest.mark.thorough)],
    ids=lambda one: one.name,
)
def test_stop_and_resume(tmp_path, number):
    command = [sys.executable, "-m", "lorakit", "train", "--family", "qwen", "--preset", "toy", "--json"]
    command += ["--data", str(PICTURES), "--trigger", "sks", "--name", "one", "--output", str(tmp_path)]
    settings = (
        "train.updates=100000",
        "save.every=2",
        "train.resolution=48",
        "validation.every=0",
        "sampling.every=0",
        "sampling.strengths=[]",
        "sampling.prompts=[]",
    )
    for setting in settings:
        command += ["--set", setting]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=QUIET)
    assert process.stdout is not None
    for line in process.stdout:
        if json.loads(line)["event"] == "CheckpointSaved":
            process.send_signal(number)
            break
    rest, errors = process.communicate(timeout=120)
    assert "Traceback" not in errors
    if number == signal.SIGKILL:
        assert process.returncode == -signal.SIGKILL
        wanted = "going on after update "
    else:
        assert process.returncode == 130, errors
        last = json.loads(rest.splitlines()[-1])
        assert (last["event"], last["reason"]) == ("RunStopped", number.name)
        assert last["update"] >= 2
        wanted = f"going on after update {last['update']}"

    until = checkpoint.newest(tmp_path / "one").update + 2
    again = subprocess.run(
        [sys.executable, "-m", "lorakit", "resume", str(tmp_path / "one"), "--set", f"train.updates={until}"],
        capture_output=True,
        text=True,
        env=QUIET,
    )
    assert again.returncode == 0, again.stderr
    assert wanted in again.stdout
    assert f"changed      train.updates = {until}, was 100000" in again.stdout
    assert "proof        diffusers" in again.stdout
    assert (tmp_path / "one" / "one.safetensors").is_file()
    assert "Traceback" not in again.stderr
