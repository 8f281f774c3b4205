"""Ctrl-C saves and leaves with 130; resume goes on from there."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

PICTURES = Path(__file__).parents[2] / "docs" / "examples" / "pictures"
QUIET = {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.mark.slow
def test_interrupt_and_resume(tmp_path):
    command = [sys.executable, "-m", "lorakit", "train", "--family", "qwen", "--preset", "toy", "--json"]
    command += ["--data", str(PICTURES), "--trigger", "sks", "--name", "one", "--output", str(tmp_path)]
    settings = ("train.updates=60", "sampling.every=0", "sampling.strengths=[]", "sampling.prompts=[]")
    for setting in settings:
        command += ["--set", setting]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=QUIET)
    assert process.stdout is not None
    for line in process.stdout:
        if json.loads(line)["event"] == "UpdateFinished":
            process.send_signal(signal.SIGINT)
            break
    rest, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    last = json.loads(rest.splitlines()[-1])
    assert last["event"] == "RunStopped"
    assert last["reason"] == "SIGINT"
    assert 1 <= last["update"] < 60

    again = subprocess.run(
        [sys.executable, "-m", "lorakit", "resume", str(tmp_path / "one")], capture_output=True, text=True, env=QUIET
    )
    assert again.returncode == 0, again.stderr
    assert f"going on after update {last['update']}" in again.stdout
    assert "proof        diffusers" in again.stdout
    assert (tmp_path / "one" / "one.safetensors").is_file()
    assert "Traceback" not in again.stderr
