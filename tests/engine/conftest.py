"""A toy model, pictures, and plans over them; what is slow to load is loaded once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from lorakit import Kit, Plan
from lorakit.control import Control
from lorakit.engine.adapter import Adapter, attach
from lorakit.engine.cache import Cache
from lorakit.engine.loop import Trainer
from lorakit.engine.parts import Source, Text
from lorakit.engine.phases import Context
from lorakit.engine.preparing import Item
from lorakit.engine.source import DTYPES, cache_folder, locate
from lorakit.family import Family
from tests.engine.crew import Crowd
from tests.engine.several import SIX, asked, codes
from tests.pictures import picture

CAPTIONS = {"0": "a red circle", "1": "a blue star on the left", "2": "a green square at the bottom", "3": "a circle"}


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def kit() -> Kit:
    return Kit()


@pytest.fixture(scope="session")
def family(kit) -> Family:
    return kit.shelves.families["qwen"]


@pytest.fixture(scope="session")
def toy(family, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("toy")
    family.toy(folder, "image")
    return folder


@pytest.fixture
def pictures(tmp_path) -> Path:
    """Four pictures in three shapes, with captions of unequal length."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    sizes = {"0": (32, 32), "1": (32, 32), "2": (24, 96), "3": (96, 24)}
    for number, (name, caption) in enumerate(CAPTIONS.items()):
        Image.new("RGB", sizes[name], (60 * number, 200 - 50 * number, 120)).save(folder / f"{name}.png")
        (folder / f"{name}.txt").write_text(caption, encoding="utf-8")
    return folder


@pytest.fixture
def make_plan(kit, toy, pictures, tmp_path):
    """A plan of a short run over the pictures; tables are merged over it."""

    def make(**tables: Any) -> Plan:
        asked: dict[str, Any] = {
            "family": "qwen",
            "preset": "none",
            "name": "run",
            "trigger": "sks",
            "output": str(tmp_path / "runs"),
            "model": {"source": str(toy)},
            "data": [{"folder": str(pictures)}],
            "lora": {"rank": 4, "targets": ["attn.to_q", "attn.to_out.0"]},
            "optimizer": {"learning_rate": 1e-3},
            "train": {"resolution": 32, "precision": "fp32", "gradient_checkpointing": False, "caption_dropout": 0},
            "quantization": {"name": "none"},
            "sampling": {"steps": 2, "width": 32, "height": 32, "guidance": 1, "every": 0, "strengths": []},
            "validation": {"every": 0},
            "save": {"every": 0, "dtype": "fp32"},
        }
        for name, value in tables.items():
            asked[name] = {**asked.get(name, {}), **value} if isinstance(value, dict) else value
        return kit.plan(asked)

    return make


@pytest.fixture
def context_for(kit, family):
    """What the phases of a plan work with; the cache is the plan's own."""

    def make(plan: Plan) -> Context:
        cpu = torch.device("cpu")
        return Context(plan, family, kit.shelves, locate(plan, family), Cache(cache_folder(plan)), cpu, Control())

    return make


@pytest.fixture
def make_trainer(kit, family, toy):
    """A trainer over a newly loaded denoiser, its adapter's B halves a little off zero where `noise` says so."""

    def make(plan: Plan, noise: float = 0.0) -> Trainer:
        dtype = DTYPES[plan.settings.train.precision]
        denoiser = family.denoiser(plan, Source(toy, "the toy", dtype))
        adapter = attach(denoiser, plan.settings.lora, plan.settings.seed, torch.device("cpu"))
        if noise:
            shake(adapter, noise)
        shift = family.variants[plan.settings.variant].flow_shift
        scheduler = kit.shelves.schedulers["flowmatch"].resolve()(plan.settings.scheduler, shift, {})
        optimizer = kit.shelves.optimizers[plan.settings.optimizer.name].resolve()(
            [part.group for part in adapter.parts], plan.settings.optimizer
        )
        return Trainer(plan, denoiser, adapter, scheduler, optimizer, family.patch, dtype)

    return make


def shake(adapter: Adapter, size: float) -> None:
    chance = torch.Generator().manual_seed(9)
    for layer in adapter.layers.values():
        layer.lora_B.data.normal_(std=size, generator=chance)


@pytest.fixture(scope="session")
def samples(empty):
    """Six made-up samples of one shape, with texts of unequal length."""
    chance = torch.Generator().manual_seed(4)
    made = []
    for number in range(6):
        length = 3 + 2 * number
        text = Text(torch.randn(1, length, 64, generator=chance), (length,))
        made.append(Item(torch.randn(16, 8, 8, generator=chance), text, empty))
    return made.__getitem__


@pytest.fixture(scope="session")
def empty() -> Text:
    return Text(torch.full((1, 2, 64), 0.3), (2,))


@pytest.fixture
def drained():
    """The answer of a phase, its events dropped."""

    def drain(work: Any) -> Any:
        while True:
            try:
                next(work)
            except StopIteration as end:
                return end.value

    return drain


@pytest.fixture
def of_kind():
    def pick(events: Iterable[Any], kind: type) -> list[Any]:
        return [event for event in events if isinstance(event, kind)]

    return pick


# -- several processes -------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def crew() -> Iterator[Crowd]:
    made = Crowd()
    yield made
    made.close()


@pytest.fixture(scope="session")
def place(tmp_path_factory) -> Path:
    """A folder of runs, whose cache they share, and of pictures: 9 of one shape and 2 of another."""
    folder = tmp_path_factory.mktemp("ranks")
    for number in range(11):
        size = (32, 32) if number < 9 else (16, 64)
        colour = (20 * number, 250 - 20 * number, 90)
        picture(folder / "pictures" / f"{number:02}.png", size, colour=colour, caption=f"a thing, number {number}")
    return folder


@pytest.fixture(scope="session")
def whole(crew, place) -> str:
    """A run of six updates of four pictures, in one process."""
    told = crew.run(1, *asked(place, "whole", **SIX))
    assert codes(told) == [0], told
    return "whole"
