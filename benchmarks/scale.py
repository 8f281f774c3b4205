"""What 10, 100, 1,000 and 10,000 pictures cost: `python benchmarks/scale.py`.

Pictures are made in a temporary folder. Indexing, planning and checking see 1024 x 1024 JPEGs, a few that are linked
under many names; caching and training see small ones that all differ, because equal pictures are encoded once. Every
figure is of a fresh process with a cache folder of its own: CPU seconds (user and system, children too), and peak
resident memory over that of the same work with 10 pictures. Counts may be given: `python benchmarks/scale.py 10 1000`.
"""

from __future__ import annotations

import gc
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

COUNTS = (10, 100, 1_000, 10_000)
PATTERNS, UPDATES = 20, 8


# -- pictures ----------------------------------------------------------------------------------------------------


def large(folder: Path, count: int) -> None:
    """1024 x 1024 JPEGs with captions: noise and shapes, `PATTERNS` files under `count` names."""
    from PIL import Image, ImageDraw

    originals = folder.with_name("originals")
    if not originals.exists():
        originals.mkdir()
        for number in range(PATTERNS):
            draw = random.Random(number)
            image = Image.effect_noise((1024, 1024), 40).convert("RGB")
            pen = ImageDraw.Draw(image)
            for _ in range(40):
                left, top, side = draw.randrange(1024), draw.randrange(1024), draw.randrange(20, 300)
                pen.ellipse((left, top, left + side, top + side), tuple(draw.choices(range(256), k=3)))
            image.save(originals / f"{number}.jpg", quality=85)
    folder.mkdir()
    for number in range(count):
        os.link(originals / f"{number % PATTERNS}.jpg", folder / f"{number:05d}.jpg")
        (folder / f"{number:05d}.txt").write_text(f"photorealistic, maya portrait number {number}, natural lighting")


def small(folder: Path, count: int) -> None:
    """48 x 48 JPEGs with captions; bytes after the end of each picture make it another file."""
    from PIL import Image

    image = folder.with_name("small.jpg")
    Image.effect_noise((48, 48), 60).convert("RGB").save(image)
    folder.mkdir()
    for number in range(count):
        (folder / f"{number:05d}.jpg").write_bytes(image.read_bytes() + f"{number}".encode())
        (folder / f"{number:05d}.txt").write_text(f"maya number {number}")


# -- what is measured, each in a process of its own --------------------------------------------------------------


def wanted(folder: str, **more: object) -> dict[str, object]:
    """The request."""
    return {"family": "qwen", "trigger": "maya", "data": [{"folder": folder}], **more}


def index(folder: str) -> None:
    """Every picture with its caption."""
    from lorakit.dataset import Sizing
    from lorakit.dataset import index as indexed
    from lorakit.planned import PlannedData

    data = [PlannedData(folder=folder, trigger="maya", resolution=1024)]
    indexed(data, Sizing(16))


def plan(folder: str) -> None:
    """What `lorakit plan` does."""
    from lorakit import Kit

    Kit().plan(wanted(folder))


def check(folder: str) -> None:
    """`lorakit check`."""
    from lorakit.cli import run

    run(["check", "--family", "qwen", "--trigger", "maya", folder])


def train(folder: str) -> None:
    """A few updates of the toy model, with everything that is cached before."""
    from lorakit import Kit

    gc.enable()
    kit = Kit()
    settings = {"updates": UPDATES, "epochs": None, "accumulation": 1}
    asked = wanted(
        folder, preset="toy", name=f"run-{os.getpid()}", output=f"{folder}-runs", train=settings, sampling={"every": 0}
    )
    for _ in kit.train(kit.plan(asked)):
        pass


WORK: dict[str, Callable[[str], None]] = {"index": index, "plan": plan, "check": check, "train": train}


def measured(name: str, folder: Path) -> dict[str, float]:
    """CPU and wall seconds and peak memory in MB of one fresh process."""
    environment = {**os.environ, "XDG_CACHE_HOME": str(folder.with_name(f"cache-{folder.name}"))}
    command = [sys.executable, __file__, "--only", name, str(folder)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def only(name: str, folder: str) -> None:
    """Do one piece of work and print what it took."""
    began = time.perf_counter()
    gc.disable()  # as the command line does; what trains turns it on again
    WORK[name](folder)
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    cpu = sum(one.ru_utime + one.ru_stime for one in usage)
    figures = {"cpu": cpu, "wall": time.perf_counter() - began, "memory": usage[0].ru_maxrss / 1e3}
    print(json.dumps(figures))


def main(counts: list[int]) -> None:
    """Measure and print a table."""
    rows: dict[str, list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as place:
        for count in counts:
            seen, taught = Path(place) / f"large-{count}", Path(place) / f"small-{count}"
            large(seen, count)
            small(taught, count)
            time.sleep(2.1)  # what is younger than two seconds is not remembered
            for name in ("index", "plan", "check", "train"):
                for state in ("cold", "warm"):
                    rows.setdefault(f"{name}, {state}", []).append(measured(name, taught if name == "train" else seen))
    print(f"{'CPU seconds (wall)':18}" + "".join(f"{count:>16,}" for count in counts))
    for name, found in rows.items():
        print(f"{name:18}" + "".join(f"{one['cpu']:9.2f} ({one['wall']:4.1f})" for one in found))
    print("peak memory, MB")
    for name, found in rows.items():
        print(f"{name:18}" + "".join(f"{one['memory']:16.1f}" for one in found))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--only"]:
        only(*sys.argv[2:4])
    else:
        main([int(text) for text in sys.argv[1:]] or list(COUNTS))
