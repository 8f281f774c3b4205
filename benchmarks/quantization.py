"""What fewer bits cost on the toy, with recovery and without: `python benchmarks/quantization.py`.

Printed is the relative error of the denoiser's output, in fp32 against the full-precision model's, on 16 unseen
pictures of the toy's world over all noise levels: bare, and with a recovery adapter made by default, once of neutral
captions and pictures and once of 256 of that world. int8 is near enough without one. A folder given as argument keeps
the adapters. It takes some seven minutes of one core.
"""

from __future__ import annotations

import random
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lorakit import Kit, Plan
from lorakit.control import Control
from lorakit.engine.cache import Cache
from lorakit.engine.loading import load_model
from lorakit.engine.material import gather
from lorakit.engine.parts import Batch
from lorakit.engine.phases import Context, Work
from lorakit.engine.source import cache_folder, locate
from lorakit.testing import shapes

NAMES = ("int8", "int8-fast", "int4", "int2")
UNSEEN, SHOWN = 16, 256
KIT = Kit()


def main() -> None:
    """Measure and print a table."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as made:
        room = Path(sys.argv[1]) if sys.argv[1:] else Path(made)
        unseen, own = scenes(room / "unseen", UNSEEN, 5), scenes(room / "shown", SHOWN, 77)
        inputs = list(seen(context(planned(room, unseen, "none"))))
        wanted = answers(planned(room, unseen, "none"), inputs)
        print(f"{'':10}{'bare':>9}{'neutral':>9}{'own':>9}")
        for name in NAMES:
            errors = [error(answers(planned(room, unseen, name), inputs), wanted)]
            for kind, pictures in () if name.startswith("int8") else (("neutral", None), ("own", own)):
                file = room / f"{name}-{kind}.safetensors"
                if not file.exists():
                    for _ in KIT.recover(planned(room, pictures, name), file):
                        pass
                errors.append(error(answers(planned(room, unseen, name, file), inputs), wanted))
            print(f"{name:10}" + "".join(f"{one:9.1%}" for one in errors), flush=True)


def scenes(folder: Path, count: int, seed: int) -> Path:
    """Pictures of the toy's world with their captions."""
    folder.mkdir(parents=True, exist_ok=True)
    chance = random.Random(seed)
    for number in range(count):
        scene = shapes.random_scene(chance)
        scene.draw(chance, (64, 64)).save(folder / f"{number:03}.png")
        (folder / f"{number:03}.txt").write_text(scene.caption)
    return folder


def planned(room: Path, pictures: Path | None, name: str, recovery: Path | None = None) -> Plan:
    """A plan over the toy with this quantization."""
    quantization: dict[str, Any] = {"name": name, "uncorrected": True}
    if recovery:
        quantization["recovery"] = str(recovery)
    asked = {"family": "qwen", "preset": "toy", "trigger": "x", "output": str(room / "runs")}
    data = [{"folder": str(pictures)}] if pictures else []
    tables = {"train": {"batch_size": 16}, "validation": {"pictures": 0}, "speed": {"modulation": "layers"}}
    return KIT.plan({**asked, "data": data, "quantization": quantization, **tables})


def context(plan: Plan) -> Context:
    """What the phases of the plan work with."""
    family = KIT.shelves.families[plan.settings.family]
    cpu = torch.device("cpu")
    return Context(plan, family, KIT.shelves, locate(plan, family), Cache(cache_folder(plan)), cpu, Control())


def seen(about: Context) -> Iterator[tuple[Tensor, Tensor, Batch]]:
    """The plan's pictures as noisy inputs, over all noise levels."""
    material = result(gather(about))
    chance = torch.Generator().manual_seed(3)
    for number in range(UNSEEN):
        item = material.item(number)
        clean, t = item.latents[None].float(), torch.tensor([(number + 0.5) / UNSEEN])
        yield torch.lerp(clean, torch.randn(clean.shape, generator=chance), t), t, Batch(item.text)


@torch.no_grad()
def answers(plan: Plan, inputs: list[tuple[Tensor, Tensor, Batch]]) -> Tensor:
    """What the model answers as a run of the plan has it."""
    denoiser = result(load_model(context(plan))).denoiser
    return torch.cat([denoiser.predict(*one).float().flatten() for one in inputs])


def error(found: Tensor, wanted: Tensor) -> float:
    """The norm of the difference over the norm."""
    return float((found - wanted).norm() / wanted.norm())


def result(work: Work[Any]) -> Any:
    """The answer of a phase, its events dropped."""
    while True:
        try:
            next(work)
        except StopIteration as end:
            return end.value


if __name__ == "__main__":
    main()
