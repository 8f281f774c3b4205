"""The SDXL toy, loaded once by lorakit and once by diffusers, for imports and weights are slow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from PIL import Image

from lorakit import Kit, Plan
from lorakit.engine.parts import Source, Text
from lorakit.family import Family
from lorakit_sdxl.model import SdxlDenoiser, SdxlImageCoder, SdxlTextEncoder

SHORT, LONG = "a red circle", "a large blue star on the left, a small green square at the bottom"


@pytest.fixture(scope="session")
def family(kit) -> Family:
    return kit.shelves.families["sdxl"]


@pytest.fixture(scope="session")
def kit() -> Kit:
    return Kit()


@pytest.fixture(scope="session")
def toy(family, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sdxl-toy")
    family.toy(folder, "base")
    return folder


@pytest.fixture(scope="session")
def source(toy) -> Source:
    return Source(toy, "the toy", torch.float32)


@pytest.fixture(scope="session")
def make_plan(kit, toy):
    """A plan over the toy that shows nothing and keeps nothing but its file; tables are merged over it."""

    def make(**tables: Any) -> Plan:
        asked: dict[str, Any] = {
            "family": "sdxl",
            "preset": "none",
            "name": "run",
            "model": {"source": str(toy), "device": "cpu"},
            "lora": {"rank": 4},
            "optimizer": {"learning_rate": 1e-3},
            "train": {"resolution": 48, "precision": "fp32", "gradient_checkpointing": False, "caption_dropout": 0},
            "sampling": {"every": 0, "strengths": [], "steps": 3, "guidance": 3.0},
            "save": {"every": 0, "dtype": "fp32"},
        }
        for name, value in tables.items():
            asked[name] = {**asked.get(name, {}), **value} if isinstance(value, dict) else value
        return kit.plan(asked)

    return make


@pytest.fixture
def pictures(tmp_path) -> Path:
    """Four pictures in two shapes, two of them larger than they are taught, so that sizes and crops differ."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    sizes = [(48, 48), (100, 96), (96, 40), (48, 48)]
    for number, (size, caption) in enumerate(zip(sizes, (SHORT, LONG, "a star", "a blue square"), strict=True)):
        Image.new("RGB", size, (60 * number, 200 - 50 * number, 120)).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(caption, encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def pipeline(toy) -> StableDiffusionXLPipeline:
    return load_pipeline(toy)


@pytest.fixture
def fresh_pipeline(toy) -> StableDiffusionXLPipeline:
    return load_pipeline(toy)


def load_pipeline(folder: Path) -> StableDiffusionXLPipeline:
    made = StableDiffusionXLPipeline.from_pretrained(folder, dtype=torch.float32, add_watermarker=False)
    made.set_progress_bar_config(disable=True)
    return made


@pytest.fixture(scope="session")
def encoder(source) -> SdxlTextEncoder:
    return quiet(SdxlTextEncoder(source))


@pytest.fixture(scope="session")
def coder(source) -> SdxlImageCoder:
    return quiet(SdxlImageCoder(source))


@pytest.fixture
def denoiser(source) -> SdxlDenoiser:
    return quiet(SdxlDenoiser(source))


def quiet(part: Any) -> Any:
    part.module.requires_grad_(False).eval()
    return part


def farthest(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).abs().max())


def texts_of(encoder: SdxlTextEncoder, *captions: str) -> Text:
    with torch.no_grad():
        return Text.collate(encoder.encode(captions))
