"""A long run of tiny updates: does memory, the number of open files or the time of an update grow?

`python benchmarks/soak.py [UPDATES]` trains the toy for so many updates (20,000), with checkpoints each 500 and
previews each 2,000, and prints a line fitted to each figure: its value at the start, and its growth over the whole run
and over its second half.
"""

from __future__ import annotations

import gc
import resource
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import torch

from lorakit import Kit, Plan
from lorakit.events import Alarm, UpdateFinished

PICTURES = Path(__file__).parents[1] / "docs" / "examples" / "pictures"
EACH = 100  # updates between two looks
WARMING = 0.1  # share of the run that is left out: what is allocated once


def plan(kit: Kit, folder: Path, updates: int) -> Plan:
    return kit.plan(
        {
            "family": "qwen",
            "preset": "toy",
            "name": "soak",
            "trigger": "sks",
            "output": str(folder),
            "data": [{"folder": str(PICTURES)}],
            "lora": {"rank": 2, "targets": ["attn.to_q"]},
            "train": {"updates": updates, "accumulation": 1, "batch_size": 1, "resolution": 32, "precision": "fp32"},
            "validation": {"every": 0},
            "sampling": {"every": 2000, "strengths": [], "steps": 2, "width": 32, "height": 32},
            "save": {"every": 500, "keep": 2},
        }
    )


def memory() -> float:
    """Megabytes of the process that lie in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


def main(updates: int) -> None:
    torch.set_num_threads(1)
    kit, rows, alarms = Kit(), [], Counter()
    with tempfile.TemporaryDirectory() as folder:
        then = time.process_time()
        for event in kit.train(plan(kit, Path(folder), updates)):
            if isinstance(event, Alarm):
                alarms[event.kind] += 1
            if isinstance(event, UpdateFinished) and event.update % EACH == 0:
                now = time.process_time()
                files, objects = len(list(Path("/proc/self/fd").iterdir())), len(gc.get_objects())
                rows.append((event.update, memory(), files, objects, 1000 * (now - then) / EACH))
                then = now
    table = np.array(rows, dtype=float)
    table = table[table[:, 0] > WARMING * updates]
    print(f"{updates} updates, {len(table)} looks")
    names = ("memory, MB", "open files", "Python objects", "CPU ms an update")
    for number, name in enumerate(names, 1):
        slope, start = np.polyfit(table[:, 0], table[:, number], 1)
        half = table[table[:, 0] > updates / 2]
        late = np.polyfit(half[:, 0], half[:, number], 1)[0]
        print(
            f"{name:18} {start:12.2f}  growth over the run {slope * updates:+.3f} ({slope * updates / start:+.2%}), "
            f"in its second half {late * updates / 2:+.3f}"
        )
    print("alarms            ", dict(alarms) or "none")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 20_000)
