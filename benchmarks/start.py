"""CPU seconds until lorakit answers: `python benchmarks/start.py`.

Each command runs as a fresh process, several times, in turn with an empty Python process, because machines are noisy;
the figure that counts is the least CPU time (user and system), and its ratio to the empty process's.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
from pathlib import Path

ROUNDS = 9
PICTURES = Path(__file__).parent.parent / "docs" / "examples" / "pictures"


def cpu_seconds(command: list[str], folder: str) -> float:
    """User and system time of one run of a command."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def main() -> None:
    """Measure and print a table."""
    lorakit = [sys.executable, "-m", "lorakit"]
    commands = {
        "python -c pass": [sys.executable, "-c", "pass"],
        "lorakit --help": [*lorakit, "--help"],
        "lorakit presets": [*lorakit, "presets"],
        "lorakit plan, 12 pictures": [*lorakit, "plan", "--family", "qwen", "--data", str(PICTURES)],
    }
    times: dict[str, list[float]] = {name: [] for name in commands}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(ROUNDS):
            for name, command in commands.items():
                times[name].append(cpu_seconds(command, folder))
    floor = min(times["python -c pass"])
    print(f"{'command':28}{'least':>8}{'median':>8}{'ratio':>8}")
    for name, found in times.items():
        found.sort()
        print(f"{name:28}{found[0]:8.3f}{found[len(found) // 2]:8.3f}{found[0] / floor:8.1f}")


if __name__ == "__main__":
    main()
