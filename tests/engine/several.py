"""Runs of several processes, the commands that start them, and what is left of them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from PIL import Image

from lorakit.engine import checkpoint
from lorakit.events import Event
from lorakit.history import events_of
from tests.engine.crew import Told

SIX = {"train__updates": 6, "train__batch_size": 4, "save__every": 2}
SIX_BY_TWO = {**SIX, "train__batch_size": 2}
"""The same pictures at once in two processes."""


def asked(place: Path, name: str, family: str = "qwen", **settings: object) -> list[str]:
    """The command that trains a run called `name`."""
    given = {
        "model.source": "toy",
        "lora.rank": 4,
        "optimizer.learning_rate": 2e-4,
        "train.resolution": 32,
        "train.precision": "fp32",
        "train.gradient_checkpointing": False,
        "quantization.name": "none",
        "sampling.every": 0,
        "sampling.strengths": "[]",
        "validation.every": 0,
        "save.every": 0,
        **{key.replace("__", "."): value for key, value in settings.items()},
    }
    sets = [part for key, value in given.items() for part in ("--set", f"{key}={str(value).lower()}")]
    start = ["train", "--family", family, "--preset", "none", "--data", str(place / "pictures"), "--trigger", "sks"]
    return [*start, "--output", str(place / "runs"), "--name", name, *sets]


def state(place: Path, name: str) -> dict[str, torch.Tensor]:
    newest = checkpoint.newest(place / "runs" / name).update
    return safetensors.torch.load_file(checkpoint.folder_of(place / "runs" / name, newest) / checkpoint.STATE)


def read(path: Path) -> np.ndarray[Any, Any]:
    return np.asarray(Image.open(path), dtype=int)


def off(place: Path, one: str, other: str) -> float:
    """How far two runs' adapters are from each other, over their length."""
    first, second = (state(place, name)["adapter"] for name in (one, other))
    return float((first - second).norm() / first.norm())


def codes(told: Iterable[Told]) -> list[int]:
    return [one.code for one in told]


def facts(place: Path, name: str, kind: type[Event]) -> list[Any]:
    return [event for event in events_of(place / "runs" / name) if isinstance(event, kind)]
