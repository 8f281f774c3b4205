"""What the tests of quantized bases share: plans over the toy, models loaded as a run loads them, errors."""

from __future__ import annotations

import random
from pathlib import Path

import torch

from lorakit import Kit
from lorakit.control import Control
from lorakit.engine.cache import Cache
from lorakit.engine.loading import load_model
from lorakit.engine.parts import Batch, Text
from lorakit.engine.phases import Context
from lorakit.engine.source import cache_folder, locate
from lorakit.testing import shapes

CPU = torch.device("cpu")


def write_scenes(folder: Path, count: int, seed: int) -> Path:
    """Pictures of the toy's own world, with their captions."""
    folder.mkdir(parents=True)
    chance = random.Random(seed)
    for number in range(count):
        scene = shapes.random_scene(chance)
        scene.draw(chance, (64, 64)).save(folder / f"{number:02}.png")
        (folder / f"{number:02}.txt").write_text(scene.caption)
    return folder


def make_plan(output, pictures=None, **tables):
    asked = {
        "family": "qwen",
        "preset": "toy",
        "trigger": "x",
        "output": str(output),
        "data": [{"folder": str(pictures)}] if pictures else [],
        "model": {"source": "toy", "device": "cpu"},
        "sampling": {"every": 0, "strengths": [], "steps": 2},
        "validation": {"pictures": 0},
    }
    for name, value in tables.items():
        asked[name] = {**asked.get(name, {}), **value} if isinstance(value, dict) else value
    return Kit().plan(asked)


def context_of(plan):
    kit = Kit()
    family = kit.shelves.families["qwen"]
    return Context(plan, family, kit.shelves, locate(plan, family), Cache(cache_folder(plan)), CPU, Control())


def drained(work, events=None):
    """The answer of a phase; its events go to `events`."""
    while True:
        try:
            event = next(work)
        except StopIteration as end:
            return end.value
        if events is not None:
            events.append(event)


def loaded(plan, events=None):
    """(denoiser, adapter) as a run of the plan has them."""
    model = drained(load_model(context_of(plan)), events)
    return model.denoiser, model.adapter


def inputs(count=8, dtype=torch.float32):
    chance = torch.Generator().manual_seed(4)
    for number in range(count):
        t = torch.tensor([(number + 0.5) / count])
        text = Text(torch.randn(1, 5 + number, 64, generator=chance).to(dtype), (5 + number,))
        yield torch.randn(1, 16, 8, 8, generator=chance).to(dtype), t, Batch(text)


def answers(denoiser, shown=None, dtype=torch.float32):
    with torch.no_grad():
        return torch.cat([denoiser.predict(*one).float().flatten() for one in shown or inputs(dtype=dtype)])


def error(found, wanted):
    return float((found.float() - wanted.float()).norm() / wanted.float().norm())
