"""A process that saves checkpoints without end, killed at random moments; what is then left is held against what was.

`python -m tests.engine.kills FOLDER COUNT` prints the figures as JSON. Torch is loaded once and every victim is forked
from there, so that a kill costs no more than the saves before it.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from collections import Counter
from pathlib import Path

import torch

from lorakit.engine import checkpoint
from lorakit.engine.checkpoint import State
from lorakit.errors import LorakitError

CPU = torch.device("cpu")
KEEP = 2
SIZE = 200_000


def made(update: int) -> State:
    """A state that nobody could take for that of another update."""
    chance = torch.Generator().manual_seed(update)
    adapter, moment = (torch.randn(SIZE, generator=chance) for _ in range(2))
    return State(update, adapter, None, [{"step": torch.tensor(float(update)), "moment": moment}])


def save_on(run: Path, told: int, count: int | None = None) -> None:
    """Save and prune from the newest checkpoint on, as a run does, telling the number of each save that returned."""
    checkpoint.tidy(run)
    update = checkpoint.newest(run).update
    while count is None or count > 0:
        update += 1
        checkpoint.save(run, made(update), f"run-{update:06d}.safetensors", b"the file" * 10_000)
        os.write(told, f"{update}\n".encode())
        checkpoint.prune(run, KEEP)
        count = None if count is None else count - 1


def kill_one(run: Path, after: float) -> int:
    """Let a process save for so many seconds, then kill it; the newest update that it said to have saved, or 0."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.close(reader)
        try:
            save_on(run, writer)
        finally:
            os._exit(1)
    os.close(writer)
    time.sleep(after)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), "the process failed by itself"
    with os.fdopen(reader) as file:
        lines = [line for line in file.read().splitlines() if line]
    return int(lines[-1]) if lines else 0


def sweep(run: Path, count: int, seed: int = 0) -> dict[str, int]:
    """Kill `count` times; how often what was left was unusable, lacked a finished checkpoint, or was in the middle."""
    began = time.monotonic()
    save_on(run, os.open(os.devnull, os.O_WRONLY), 3)
    each = (time.monotonic() - began) / 3
    figures = Counter(kills=count, unusable=0, lost=0, in_the_middle=0, saves=3)
    chance, newest = random.Random(seed), 3
    for _ in range(count):
        told = kill_one(run, chance.uniform(0, 3 * each))
        finished, before = max(told, newest), newest
        figures["in_the_middle"] += any((run / "checkpoints").glob(".*update-*"))
        try:
            newest = checkpoint.newest(run).update
            held = checkpoint.load(run, newest, CPU)
            whole = [one for one in checkpoint.saved(run) if not checkpoint.fault(checkpoint.folder_of(run, one))]
            good = torch.equal(held.adapter, made(newest).adapter)
            figures["unusable"] += not good or whole != checkpoint.saved(run)
            figures["lost"] += newest < finished or len(whole) < KEEP
        except LorakitError:
            figures["unusable"] += 1
        figures["saves"] += newest - before
    return dict(figures)


if __name__ == "__main__":
    print(json.dumps(sweep(Path(sys.argv[1]), int(sys.argv[2]))))
