"""Checkpoints: folders that appear whole or not at all, and hold the loadable file and the state to go on from.

A checkpoint is written beside its place, every file and folder of it brought to the disk, and then renamed. Its facts
hold the SHA-256 of each of its files and of themselves, so that one which went bad is noticed.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import repeat
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from lorakit import jsontext
from lorakit.engine.cache import sync, write_atomically
from lorakit.engine.headers import check
from lorakit.engine.packing import pack, unpack
from lorakit.errors import RunError

NAME = re.compile(r"^update-(\d{1,18})$")
STATE, FACTS = "state.safetensors", "state.json"
UNREADABLE = (OSError, ArithmeticError, ValueError, KeyError, IndexError, TypeError, AttributeError, SafetensorError)


@dataclass(frozen=True, slots=True)
class State:
    """Everything that training goes on from: draws depend on the seed and on `update` alone, so no random state."""

    update: int
    adapter: Tensor
    average: Tensor | None
    optimizer: Sequence[Mapping[str, Any]]
    """The optimizer's state of each of the adapter's parts."""
    groups: Sequence[Mapping[str, Any]] = ()
    """What its groups hold beside their parameters, where some optimizers keep state too."""
    more: Mapping[str, Any] = field(default_factory=dict)
    """What its `state_dict` holds beside those two."""


@dataclass(frozen=True, slots=True)
class Newest:
    """The newest checkpoint that is whole, 0 where there is none yet, and why newer ones are not.

    `settings` are those that it was made with; `notes` are for a person.
    """

    update: int = 0
    damaged: Mapping[int, str] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def folder_of(run: Path, update: int) -> Path:
    """Where the checkpoint of an update is."""
    return run / "checkpoints" / f"update-{update:06d}"


def saved(run: Path) -> list[int]:
    """The updates that have a checkpoint, in order, whole or not."""
    found = (NAME.match(path.parent.name) for path in (run / "checkpoints").glob(f"update-*/{FACTS}"))
    return sorted(int(match.group(1)) for match in found if match)


# -- saving ------------------------------------------------------------------------------------------------------


def save(run: Path, state: State, lora_name: str, lora: bytes, settings: Mapping[str, Any] | None = None) -> Path:
    """Write a checkpoint beside its place, then move it there; its folder.

    One that stands there already stays where it is whole, and is set aside where it is not.
    """
    place = folder_of(run, state.update)
    try:
        if not place.exists() or fault(place):
            _write(place, state, lora_name, lora, settings or {})
    except OSError as error:
        raise RunError(
            f"the checkpoint {place} cannot be written", why=str(error), fix="Free some space; then `lorakit resume`."
        ) from error
    return place


def _write(place: Path, state: State, lora_name: str, lora: bytes, settings: Mapping[str, Any]) -> None:
    aside = place.with_name(f".{place.name}")
    shutil.rmtree(aside, ignore_errors=True)
    body, facts = _encoded(state)
    files = {lora_name: lora, STATE: body}
    for name, data in files.items():
        write_atomically(aside / name, data)
    facts |= {"files": {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}}
    facts |= {"settings": dict(settings)}
    write_atomically(aside / FACTS, json.dumps({**facts, "sha256": _digest(facts)}).encode())
    sync(aside)
    if place.exists():
        set_aside(place)
    aside.replace(place)
    sync(place.parent)
    sync(place.parent.parent)


def _encoded(state: State) -> tuple[bytes, dict[str, Any]]:
    """The state's tensors as a safetensors file, and the rest of it."""
    home, tensors = state.adapter.device, dict[str, Tensor]()
    tensors["adapter"] = state.adapter.detach().to("cpu", copy=True)
    if state.average is not None:
        tensors["average"] = state.average.detach().to("cpu", copy=True)
    facts = {
        "update": state.update,
        "optimizer": pack(list(state.optimizer), "optimizer", home, tensors),
        "groups": pack(list(state.groups), "groups", home, tensors),
        "more": pack(state.more, "more", home, tensors),
    }
    return safetensors.torch.save(tensors), facts


def _digest(facts: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def prune(run: Path, keep: int) -> list[int]:
    """Remove all but the newest `keep` checkpoints; the updates that were removed.

    Nothing is removed while the newest is not whole. A folder is renamed before it is emptied, so that nobody takes
    what is left of it for a checkpoint.
    """
    found = saved(run)
    gone = found[:-keep]
    if gone and fault(folder_of(run, found[-1])):
        return []
    for update in gone:
        place = folder_of(run, update)
        removed = place.with_name(f".removed-{place.name}")
        shutil.rmtree(removed, ignore_errors=True)
        place.replace(removed)
        shutil.rmtree(removed, ignore_errors=True)
    return gone


def tidy(run: Path) -> None:
    """Remove what a killed process left half-written or half-removed; for whoever holds the run alone."""
    for left in (run / "checkpoints").glob(".*update-*"):
        shutil.rmtree(left, ignore_errors=True)


def set_aside(place: Path) -> Path:
    """Rename a damaged checkpoint's folder, so that it does not count and is not lost; where it is now."""
    names = (place.with_name(f"{place.name}.damaged{f'-{number}' * bool(number)}") for number in range(1000))
    aside = next(name for name in names if not name.exists())
    place.replace(aside)
    sync(place.parent)
    return aside


# -- loading -----------------------------------------------------------------------------------------------------


def newest(run: Path) -> Newest:
    """The newest checkpoint that is whole; RunError where there are checkpoints and none of them is."""
    damaged: dict[int, str] = {}
    for update in reversed(saved(run)):
        place = folder_of(run, update)
        damaged[update] = fault(place)
        if not damaged[update]:
            del damaged[update]
            facts = _facts(place)
            return Newest(update, damaged, facts["settings"], tuple(_altered(place, facts)))
    if damaged:
        update, why = next(iter(damaged.items()))
        raise RunError(
            f"none of the checkpoints in {run / 'checkpoints'} can be read",
            why=f"update-{update:06d}: {why}",
            fix="Bring one back from a backup, or start anew with another --name.",
        )
    return Newest()


def fault(place: Path) -> str:
    """What keeps training from going on from a checkpoint's folder; empty where nothing does."""
    try:
        facts = _facts(place)
        wanted, found = facts["files"][STATE], _hash(place / STATE)
    except UNREADABLE as error:
        return f"{type(error).__name__}: {error}"
    return "" if found == wanted else f"{STATE} is not as it was written"


def load(run: Path, update: int, device: torch.device) -> State:
    """The state of a checkpoint."""
    place = folder_of(run, update)
    try:
        if why := fault(place):
            raise ValueError(why)
        check(place / STATE)
        facts, tensors = _facts(place), safetensors.torch.load_file(place / STATE)
        parts, groups, more = (unpack(facts[name], device, tensors) for name in ("optimizer", "groups", "more"))
        average = tensors["average"].to(device) if "average" in tensors else None
        return State(int(facts["update"]), tensors["adapter"].to(device), average, parts, groups, more)
    except UNREADABLE as error:
        raise RunError(
            f"the checkpoint {place} cannot be read",
            why=f"{type(error).__name__}: {error}",
            fix="Remove it; the run then goes on from the one before.",
        ) from error


def _facts(place: Path) -> dict[str, Any]:
    """The facts of a checkpoint; ValueError where they are not as they were written."""
    facts = jsontext.table((place / FACTS).read_bytes())
    if facts.pop("sha256", None) != _digest(facts):
        raise ValueError(f"{FACTS} is not as it was written")
    tables = [facts.get(name) for name in ("files", "settings")]
    if not all(isinstance(one, dict) for one in tables) or not all(
        map(isinstance, facts["files"].values(), repeat(str))
    ):
        raise ValueError(f"{FACTS} does not say what it must")
    return facts


def _altered(place: Path, facts: Mapping[str, Any]) -> list[str]:
    """What a person should know of files that training does not need: the loadable file may have been changed."""
    others = [(place / Path(name).name, wanted) for name, wanted in facts["files"].items() if name != STATE]
    return [f"{path} is not as it was written" for path, wanted in others if path.is_file() and _hash(path) != wanted]


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
