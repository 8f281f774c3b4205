"""The examples for clusters, run on this machine with a local folder in place of a cluster's."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.docs.pages import ROOT
from tests.pictures import picture

CLUSTER = ROOT / "docs" / "examples" / "cluster"
CONFIG = """
family = "qwen"
preset = "toy"
[lora]
rank = 2
[train]
updates = 1
resolution = 32
batch_size = 1
[sampling]
every = 0
strengths = []
[validation]
every = 0
[save]
every = 0
report = false
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A list of two LoRAs, with `srun` and `lorakit` on the path as a cluster has them."""
    for name in ("maya", "noor"):
        picture(tmp_path / name / "1.png", (32, 32), caption="a square")
    (tmp_path / "list.txt").write_text("".join(f"{one} {tmp_path / one} {one}_char\n" for one in ("maya", "noor")))
    (tmp_path / "run.toml").write_text(CONFIG)
    tool(tmp_path, "srun", 'exec "$@"')
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("SCRIPTS", str(CLUSTER))
    monkeypatch.delenv("OUTPUT", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def tool(here: Path, name: str, body: str) -> None:
    path = here / "bin" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)


def sh(*words: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(["sh", *words], capture_output=True, text=True, env={**os.environ, **environment})


def test_a_job_of_the_array_trains_its_lora_and_leaves_a_finished_one_alone(here):
    tool(here, "lorakit", f'exec "{sys.executable}" -m lorakit "$@"')
    done = sh(str(CLUSTER / "array.sbatch"), SLURM_ARRAY_TASK_ID="1")
    assert done.returncode == 0, done.stderr
    assert (here / "runs" / "noor" / "noor.safetensors").is_file()
    assert not (here / "runs" / "maya").exists()
    again = sh(str(CLUSTER / "array.sbatch"), SLURM_ARRAY_TASK_ID="1")
    assert (again.returncode, again.stdout) == (0, "noor is finished\n")
    copied = copy(here / "runs" / ".cache", here / "bucket")
    assert copied == f"{len(list((here / 'runs' / '.cache').glob('??/*.safetensors')))} values copied\n"
    assert copied != "0 values copied\n"
    assert copy(here / "runs" / ".cache", here / "bucket") == "0 values copied\n"
    assert copy(here / "bucket", here / "other" / ".cache") == copied


def copy(source: Path, target: Path) -> str:
    command = [sys.executable, str(CLUSTER / "cache.py"), source.as_uri(), str(target)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_a_begun_run_goes_on(here):
    tool(here, "lorakit", 'echo "$@"')
    (here / "runs" / "maya").mkdir(parents=True)
    (here / "runs" / "maya" / "plan.json").write_text("{}")
    assert sh(str(CLUSTER / "one.sh"), "list.txt", "0", "--gpus", "1").stdout == "resume runs/maya\n"
    other = sh(str(CLUSTER / "one.sh"), "list.txt", "1", "--gpus", "1", OUTPUT="elsewhere").stdout
    assert other == f"train --name noor --data {here / 'noor'} --trigger noor_char --output elsewhere --gpus 1\n"


def test_a_number_beyond_the_list_is_refused(here):
    refused = sh(str(CLUSTER / "one.sh"), "list.txt", "2")
    assert (refused.returncode, refused.stderr) == (2, "list.txt has no line 2\n")


def test_the_kubernetes_job_runs_the_same_script(here):
    tool(here, "lorakit", 'echo "$@"')
    (here / "one.sh").write_text((CLUSTER / "one.sh").read_text())
    job = yaml.safe_load((CLUSTER / "job.yaml").read_text())
    (container,) = job["spec"]["template"]["spec"]["containers"]
    done = subprocess.run(
        container["command"], capture_output=True, text=True, env={**os.environ, "JOB_COMPLETION_INDEX": "1"}
    )
    assert done.stdout.startswith("train --name noor ")
    assert done.stdout.endswith("--config run.toml\n")
    assert (job["spec"]["completions"], job["spec"]["completionMode"]) == (1000, "Indexed")


def test_one_lora_on_many_hosts_is_one_torchrun_a_host(here):
    tool(here, "scontrol", "printf 'host-1\\nhost-2\\n'")
    tool(here, "torchrun", 'echo "$@"')
    done = sh(str(CLUSTER / "nodes.sbatch"), SLURM_JOB_ID="7", SLURM_JOB_NODELIST="host-[1-2]")
    assert done.stdout == (
        "--nnodes 8 --nproc-per-node 8 --max-restarts 3 --rdzv-id 7 --rdzv-backend c10d "
        "--rdzv-endpoint host-1:29500 -m lorakit train --config run.toml\n"
    )
