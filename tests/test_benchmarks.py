"""The scripts that need other machines at least run, at toy sizes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.thorough
def test_the_script_for_gpus_runs_anywhere():
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), "--tiny", "qwen, plain"]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    cases = [line for line in done.stdout.splitlines() if line.startswith("qwen")]
    assert len(cases) == 1
    assert all("GB" in line and "cosine" in line and "NOT FINITE" not in line for line in cases), done.stdout


@pytest.mark.thorough
def test_the_gradient_under_int8_fast_points_where_that_of_full_precision_does():
    """The script leaves with an error where the cosine is under what is promised."""
    command = [sys.executable, str(ROOT / "benchmarks" / "int8_fast.py"), "--updates", "1"]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=600, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "attn.to_q " in done.stdout
    assert "cosine of the adapter's gradient: mean 0.99" in done.stdout
    assert "on the full base" in done.stdout
