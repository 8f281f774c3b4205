"""Checkpoints: folders that appear whole or not at all, and hold the loadable file and the state to go on from."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from lorakit.engine.cache import write_atomically
from lorakit.errors import RunError

NAME = re.compile(r"^update-(\d+)$")
STATE, FACTS = "state.safetensors", "state.json"


@dataclass(frozen=True, slots=True)
class State:
    """Everything that training goes on from: draws depend on the seed and on `update` alone, so no random state."""

    update: int
    adapter: Tensor
    average: Tensor | None
    optimizer: Sequence[Mapping[str, Any]]
    """The optimizer's state of each of the adapter's parts."""


def folder_of(run: Path, update: int) -> Path:
    """Where the checkpoint of an update is."""
    return run / "checkpoints" / f"update-{update:06d}"


def saved(run: Path) -> list[int]:
    """The updates that have a checkpoint, in order."""
    named = (NAME.match(path.parent.name) for path in (run / "checkpoints").glob(f"update-*/{FACTS}"))
    return sorted(int(match.group(1)) for match in named if match)


def save(run: Path, state: State, lora_name: str, lora: bytes) -> Path:
    """Write a checkpoint beside its place, then move it there; its folder."""
    place = folder_of(run, state.update)
    aside = place.with_name(f".{place.name}")
    tensors = {"adapter": state.adapter}
    if state.average is not None:
        tensors["average"] = state.average
    scalars: list[dict[str, Any]] = []
    for number, part in enumerate(state.optimizer):
        named = {name: value for name, value in part.items() if isinstance(value, Tensor)}
        tensors |= {f"optimizer.{number}.{name}": value for name, value in named.items()}
        scalars.append({name: value for name, value in part.items() if name not in named})
    held = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    facts = {"update": state.update, "optimizer": scalars}
    shutil.rmtree(aside, ignore_errors=True)
    write_atomically(aside / lora_name, lora)
    write_atomically(aside / STATE, safetensors.torch.save(held))
    write_atomically(aside / FACTS, json.dumps(facts).encode())
    shutil.rmtree(place, ignore_errors=True)
    aside.replace(place)
    _sync(place.parent)
    return place


def load(run: Path, update: int, device: torch.device) -> State:
    """The state of a checkpoint."""
    folder = folder_of(run, update)
    try:
        facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
        tensors = safetensors.torch.load_file(folder / STATE, device=str(device))
        optimizer: list[dict[str, Any]] = [dict(part) for part in facts["optimizer"]]
        update, adapter = int(facts["update"]), tensors.pop("adapter")
        average = tensors.pop("average", None)
        for full, tensor in tensors.items():
            _, number, name = full.split(".", 2)
            optimizer[int(number)][name] = tensor
    except (OSError, ValueError, KeyError, IndexError, TypeError, SafetensorError) as error:
        raise RunError(
            f"the checkpoint {folder} cannot be read",
            why=f"{type(error).__name__}: {error}",
            fix="Remove it; the run then goes on from the one before.",
        ) from error
    return State(update, adapter, average, optimizer)


def prune(run: Path, keep: int) -> list[int]:
    """Remove all but the newest `keep` checkpoints; the updates that were removed."""
    gone = saved(run)[:-keep]
    for update in gone:
        shutil.rmtree(folder_of(run, update), ignore_errors=True)
    return gone


def _sync(folder: Path) -> None:
    """Make a rename in `folder` last through a power cut, where the system can."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return  # Windows has no folder handles
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
