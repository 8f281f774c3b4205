"""What caching costs beside a bare encode loop: `python benchmarks/cache.py`.

Both decode, resize and encode the same pictures with the toy's image coder and write their latents, in one process and
on one thread, a picture each in turn. The bare loop does nothing else: no checksums, no names by content, no flush to
the disk. Figures are CPU time of a picture, as the least and the median, and the bare loop's share of lorakit's. Then
everything is planned, indexed and gathered a second time, as with 500 pictures or more, whose sizes are remembered; it
fails where that opens a picture or encodes anything.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import safetensors.torch
import torch
from PIL import Image

from lorakit import Kit, Plan
from lorakit import dataset as indexing
from lorakit.control import Control
from lorakit.dataset import Framed, index
from lorakit.engine import pixels
from lorakit.engine.cache import Cache
from lorakit.engine.caching import cache_images, frames
from lorakit.engine.material import gather
from lorakit.engine.phases import Context
from lorakit.engine.source import cache_folder, locate
from lorakit.events import PhaseFinished, PhaseProgress

PICTURES, SIDE, TAKEN = 12, 192, 512
"""How many, the side that they are encoded at, and the side that they were taken at."""
WARMING = 2
KIT = Kit()


def photographs(folder: Path) -> Path:
    """JPEGs that differ, with captions."""
    folder.mkdir()
    for number in range(PICTURES):
        Image.effect_noise((TAKEN, TAKEN), 20 + number).convert("RGB").save(folder / f"{number:02}.jpg", quality=90)
        (folder / f"{number:02}.txt").write_text(f"photograph {number}")
    return folder


def planned(folder: Path) -> Plan:
    """A plan over the toy."""
    return KIT.plan(
        {
            "family": "qwen",
            "preset": "toy",
            "trigger": "x",
            "output": str(folder.with_name("runs")),
            "data": [{"folder": str(folder)}],
            "train": {"resolution": SIDE},
            "validation": {"pictures": 0, "every": 0},
            "sampling": {"prompts": [], "every": 0, "strengths": []},
        }
    )


def context(plan: Plan) -> Context:
    """What the phases of the plan work with."""
    family = KIT.shelves.families["qwen"]
    place = Cache(cache_folder(plan))
    return Context(plan, family, KIT.shelves, locate(plan, family), place, torch.device("cpu"), Control())


def bare(pictures: list[Framed], room: Context, folder: Path) -> Iterator[None]:
    """The loop that one writes by hand."""
    coder = room.family.image_coder(room.plan, room.source)
    coder.module.requires_grad_(False).eval()
    folder.mkdir()
    yield
    for picture in pictures:
        with torch.no_grad():
            latents = coder.encode(pixels.load(picture)[None])[0]
        safetensors.torch.save_file({"latents": latents}, folder / f"{picture.path.stem}.safetensors")
        yield


def lorakit(room: Context) -> Iterator[None]:
    """The phase as a run makes it."""
    dataset = index(room.plan.settings.data, room.family.planned_sizing(room.plan.settings))
    for event in cache_images(room, dataset, ()):
        if isinstance(event, PhaseProgress) or event.__class__.__name__ == "PhaseStarted":
            yield


def opened(work: Any) -> tuple[list[str], list[str]]:
    """The pictures that some work opens, and what its phases say."""
    found, said, watching = [], [], [True]

    def watch(event: str, args: tuple[Any, ...]) -> None:
        if watching and event == "open" and str(args[0]).endswith(".jpg"):
            found.append(str(args[0]))

    sys.addaudithook(watch)
    for event in work():
        if isinstance(event, PhaseFinished):
            said.append(f"{event.phase}: {event.note}")
    watching.clear()
    return found, said


def main() -> None:
    """Measure and print a table."""
    torch.set_num_threads(1)
    indexing.WORTH_IT = 0  # the headers of fewer pictures are read again, which is as fast
    with tempfile.TemporaryDirectory() as place:
        os.environ["XDG_CACHE_HOME"] = place
        folder = photographs(Path(place) / "pictures")
        time.sleep(2.1)  # what is younger than two seconds is not remembered
        plan = planned(folder)
        room = context(plan)
        dataset = index(plan.settings.data, room.family.planned_sizing(plan.settings))
        loops = {"bare": bare(frames(dataset, ()), room, Path(place) / "bare"), "lorakit": lorakit(room)}
        times: dict[str, list[float]] = {name: [] for name in loops}
        for loop in loops.values():
            next(loop)
        for _ in range(PICTURES):
            for name, loop in loops.items():
                began = time.process_time()
                next(loop)
                times[name].append(time.process_time() - began)
        for loop in loops.values():
            next(loop, None)
        print(f"{'ms of CPU time':18}{'least':>9}{'median':>9}{'share, least':>14}{'median':>9}{'whole':>9}")
        best = times["bare"][WARMING:]
        for name, all_of in times.items():
            found = all_of[WARMING:]
            shares = f"{min(best) / min(found):14.3f}{median(best) / median(found):9.3f}{sum(best) / sum(found):9.3f}"
            print(f"{name:18}{1e3 * min(found):9.1f}{1e3 * median(found):9.1f}{shares}")
        for _ in gather(room):
            pass  # the captions too
        again, said = opened(lambda: gather(context(planned(folder))))
        print("a second time: " + "; ".join(said))
        if again or any("0 encoded" not in one for one in said if one.startswith("cache")):
            raise SystemExit(f"a second time opens {len(again)} pictures")


if __name__ == "__main__":
    main()
