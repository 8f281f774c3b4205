"""Kill processes at random moments around their saves, and count what is lost.

`python benchmarks/kills.py [COUNT] [REAL]` kills a process that only saves COUNT times (200), and REAL times (10) the
real command line while it trains the toy and saves after every update, going on with `lorakit resume` each time.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tests.engine.kills import sweep  # noqa: E402

from lorakit.engine import checkpoint  # noqa: E402
from lorakit.engine.run_folder import events_of  # noqa: E402
from lorakit.errors import LorakitError  # noqa: E402
from lorakit.events import CheckpointSaved  # noqa: E402

PICTURES = ROOT / "docs" / "examples" / "pictures"
UPDATES = 100_000  # never reached


def real(folder: Path, count: int) -> dict[str, int]:
    """Kill `lorakit train` once and `lorakit resume` after that."""
    command = ["train", "--family", "qwen", "--preset", "toy", "--data", str(PICTURES), "--trigger", "sks"]
    command += ["--name", "one", "--output", str(folder)]
    settings = (f"train.updates={UPDATES}", "save.every=1", "save.keep=2", "sampling.every=0", "sampling.strengths=[]")
    command += [word for setting in settings for word in ("--set", setting)]
    run, chance, figures = folder / "one", random.Random(1), {"kills": count, "unusable": 0, "lost": 0, "updates": 0}
    for _ in range(count):
        process = subprocess.Popen(
            [sys.executable, "-m", "lorakit", *command, "--json"], stdout=subprocess.PIPE, text=True, env=os.environ
        )
        assert process.stdout is not None
        for line in process.stdout:
            if json.loads(line)["event"] == "CheckpointSaved":
                time.sleep(chance.uniform(0, 0.5))
                break
        process.kill()
        process.communicate()
        saved = max((one.update for one in events_of(run) if isinstance(one, CheckpointSaved)), default=0)
        try:
            newest = checkpoint.newest(run).update
            figures["lost"] += newest < saved
            figures["updates"] = newest
        except LorakitError:
            figures["unusable"] += 1
        command = ["resume", str(run)]
    return figures


if __name__ == "__main__":
    counts = [int(word) for word in sys.argv[1:]] + [200, 10][len(sys.argv) - 1 :]
    with tempfile.TemporaryDirectory() as place:
        print("saves only ", sweep(Path(place) / "saves", counts[0]))
        print("lorakit    ", real(Path(place) / "runs", counts[1]))
