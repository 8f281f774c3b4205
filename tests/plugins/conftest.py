"""The Qwen toy, loaded once by lorakit and once by diffusers, for imports and weights are slow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import QwenImagePipeline

from lorakit import Kit, Plan
from lorakit.engine.parts import Source
from lorakit_qwen.model import QwenDenoiser, QwenImageCoder, QwenTextEncoder


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def kit() -> Kit:
    return Kit()


@pytest.fixture(scope="session")
def toy(kit, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("qwen-toy")
    kit.shelves.families["qwen"].toy(folder, "image")
    return folder


@pytest.fixture(scope="session")
def source(toy) -> Source:
    return Source(toy, "the toy", torch.float32)


@pytest.fixture(scope="session")
def make_plan(kit, toy):
    def make(**tables: Any) -> Plan:
        train = {"resolution": 64, "precision": "fp32", **tables.pop("train", {})}
        lora = {"rank": 4, **tables.pop("lora", {})}
        rest = {"preset": "none", "model": {"source": str(toy)}, "quantization": {"name": "none"}, **tables}
        return kit.plan({"family": "qwen", "train": train, "lora": lora, **rest})

    return make


@pytest.fixture(scope="session")
def pipeline(toy) -> QwenImagePipeline:
    return load_pipeline(toy)


@pytest.fixture
def fresh_pipeline(toy) -> QwenImagePipeline:
    return load_pipeline(toy)


def load_pipeline(folder: Path) -> QwenImagePipeline:
    made = QwenImagePipeline.from_pretrained(folder, dtype=torch.float32)
    made.set_progress_bar_config(disable=True)
    return made


@pytest.fixture(scope="session")
def encoder(make_plan, source) -> QwenTextEncoder:
    return quiet(QwenTextEncoder(make_plan(), source))


@pytest.fixture(scope="session")
def coder(source) -> QwenImageCoder:
    return quiet(QwenImageCoder(source))


@pytest.fixture
def denoiser(source) -> QwenDenoiser:
    return quiet(QwenDenoiser(source))


def quiet(part: Any) -> Any:
    part.module.requires_grad_(False).eval()
    return part
