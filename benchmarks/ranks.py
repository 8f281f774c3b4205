"""What processes say to one another in an update, how much slower it is than that of one, and whether it is the same.

`python benchmarks/ranks.py [--equal]`: torchrun starts one, two and four processes on this machine's CPU, each with as
many pictures at once, with a base that is whole in each and with one that is sharded. `--equal` compares them, for each
family, with one process that makes the same passes: their shares of each batch, one after another. Beside it stands how
far that process is from one that passes each batch at once.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))

PLAIN = (
    "model.source=toy",
    "lora.rank=4",
    "train.resolution=32",
    "train.precision=fp32",
    "train.gradient_checkpointing=false",
    "quantization.name=none",
    "sampling.every=0",
    "sampling.strengths=[]",
    "validation.every=0",
    "save.report=false",
)
RATE = "optimizer.learning_rate=2e-4"
SHAPES = ((32, 32),) * 9 + ((16, 64),) * 2
"""Batches of four: 4, 4, 1 of the one shape, and 2 of the other."""
WAYS = ((2, "replicated"), (2, "sharded"), (4, "replicated"), (4, "sharded"))
"""How many processes, and how they hold the base."""


def pictures(folder: Path, sizes: tuple[tuple[int, int], ...]) -> None:
    folder.mkdir()
    for number, size in enumerate(sizes):
        Image.new("RGB", size, (20 * number, 250 - 20 * number, 90)).save(folder / f"{number:02}.png")
        (folder / f"{number:02}.txt").write_text(f"a thing, number {number}", encoding="utf-8")


def start(count: int, folder: Path, name: str, family: str, *settings: str, shares: int = 1) -> dict[str, float]:
    """What the first of so many processes counted in a run; `shares` are passed by each, one after another."""
    sets = [part for one in (*PLAIN, *settings) for part in ("--set", one)]
    asked = ["train", "--family", family, "--preset", "none", "--data", str(folder / "pictures"), "--trigger", "sks"]
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count), __file__, "--worker"]
    subprocess.run(
        [sys.executable, *command, *asked, "--output", str(folder / "runs"), "--name", name, *sets],
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "SHARES": str(shares)},
        stdout=subprocess.DEVNULL,
    )
    return dict(json.loads((folder / "runs" / f"{name}.json").read_text()))


def work(arguments: list[str]) -> int:
    """A worker: lorakit, with torch's collectives counted."""
    import torch.distributed as dist
    from tests.engine.shares import arrange
    from torch import Tensor

    from lorakit import launched
    from lorakit.cli import run
    from lorakit.engine.loop import Trainer
    from lorakit.events import UpdateFinished
    from lorakit.history import events_of

    if (shares := int(os.environ["SHARES"])) > 1:
        arrange(shares)
    sums, gathers, own = list[int](), list[int](), dist.all_reduce
    used, brought, update = list[float](), list[int](), Trainer.start

    def counted(tensor: Tensor, *more: object, **named: object) -> object:
        sums.append(tensor.numel() * tensor.element_size())
        return own(tensor, *more, **named)

    if "train.sharding=sharded" in arguments:
        from lorakit.engine import sharding

        gather = sharding.GATHER

        def gathered(output: Tensor, *more: object, **named: object) -> object:
            gathers.append(output.numel() * output.element_size())
            return gather(output, *more, **named)

        sharding.GATHER = gathered

    def timed(*arguments: Any) -> object:
        began = time.process_time()
        made = update(*arguments)
        used.append(time.process_time() - began)
        brought.append(sum(gathers))
        gathers.clear()
        return made

    dist.all_reduce, Trainer.start = counted, timed
    code = run(arguments)
    if not code and not launched.number():
        output, name = (Path(arguments[arguments.index(one) + 1]) for one in ("--output", "--name"))
        seconds = [one.seconds for one in events_of(output / name) if isinstance(one, UpdateFinished)]
        facts = {"bytes": sum(sums) / len(seconds), "largest": max(sums, default=0), "sums": len(sums) / len(seconds)}
        facts |= {"wall": median(seconds), "cpu": median(used), "gathered": median(brought)}
        (output / f"{name}.json").write_text(json.dumps(facts))
    return code


def scaling(folder: Path) -> None:
    """As much for each process, so that an update of several is one of as many times the pictures."""
    pictures(folder / "pictures", ((32, 32),) * 16)
    for accumulation in (1, 4):
        settings = ("train.updates=20", "train.batch_size=2", "save.every=0", f"train.accumulation={accumulation}")
        one = start(1, folder, f"1-{accumulation}", "qwen", *settings)
        for count, way in WAYS:
            name = f"{count}-{way}-{accumulation}"
            some = start(count, folder, name, "qwen", *settings, f"train.sharding={way}")
            gathered = f", gathers blocks of {some['gathered']:,.0f} bytes" if some["gathered"] else ""
            pace = {clock: one[clock] / some[clock] for clock in ("cpu", "wall")}
            print(
                f"{count} processes, {way}, accumulation {accumulation}: an update sums {some['bytes']:,.0f} bytes in "
                f"{some['sums']:g} sums, the gradient's {some['largest']:,}{gathered}; pace of each over that "
                f"of one {pace['cpu']:.2f} by CPU time, {pace['wall']:.2f} by the clock"
            )


def equal(folder: Path) -> None:
    import safetensors.torch

    def taught(count: int, name: str, family: str, *settings: str, shares: int = 1) -> Any:
        same = ("train.updates=50", "save.every=50", RATE, "train.caption_dropout=0.2")
        start(count, folder, name, family, *same, f"train.batch_size={4 // count}", *settings, shares=shares)
        state = folder / "runs" / name / "checkpoints" / "update-000050" / "state.safetensors"
        return safetensors.torch.load_file(state)["adapter"]

    def apart(one: Any, other: Any) -> str:
        far, share = (one - other).abs().max(), (one - other).norm() / one.norm()
        return f"largest difference {far:.2g}, distance over length {share:.2g}"

    pictures(folder / "pictures", SHAPES)
    for family in ("qwen", "flux", "sdxl"):
        whole, same = taught(1, f"{family}-1", family), dict[int, Any]()
        for count, way in WAYS:
            if count not in same:
                same[count] = taught(1, f"{family}-1-{count}", family, shares=count)
                print(f"{family}, one process, a batch at once and in {count}: {apart(whole, same[count])}", flush=True)
            some = taught(count, f"{family}-{count}-{way}", family, f"train.sharding={way}")
            told = f"{apart(same[count], some)}; from a batch at once {apart(whole, some)}"
            print(f"{family}, {count} processes, {way}: from the same passes {told}", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        sys.exit(work(sys.argv[2:]))
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--equal", action="store_true")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        (equal if asked.equal else scaling)(Path(made))
