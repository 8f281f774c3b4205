"""How several GPUs hold the frozen base: all of it on each, or a part of every block on each, and why."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from lorakit.errors import ConfigError
from lorakit.estimate.model import sized
from lorakit.estimate.rates import Device
from lorakit.estimate.space import base
from lorakit.estimate.words import size as told
from lorakit.family import Family
from lorakit.order import AHEAD
from lorakit.registry import Part
from lorakit.request import Request

Fill = Callable[[str, object, str, str], None]
"""Sets a setting that nobody set: its name, the value, who decides and why."""
Card = Callable[[], Device | None]
"""The card that is planned for, where it is known; asked where that decides something."""


def fill(
    put: Fill, table: dict[str, Any], request: Request, family: Family, quantizers: Mapping[str, Part], card: Card
) -> None:
    """Which of the two ways, where nobody says: the whole base on each, as long as it fits."""
    if table["train"]["gpus"] == 1:
        return
    if request.settings.train.sharding is None:
        put("train.sharding", *_chosen(table, request, family, quantizers, card))
    if table["train"]["sharding"] == "sharded":
        because = "all GPUs compute together, and none may begin a batch anew where its memory runs out"
        put("speed.recompute", "all", "lorakit", because)


def refuse(table: dict[str, Any], request: Request, quantizer: Part) -> None:
    """Raise ConfigError where the base is to be sharded and cannot be."""
    if request.settings.train.sharding is None:
        return
    where = request.where("train.sharding")
    if table["train"]["gpus"] == 1:
        raise ConfigError(
            f"train.sharding = '{request.settings.train.sharding}' needs several GPUs",
            where=where,
            why="one GPU has nobody to share with",
            fix="Say how many with --gpus, or leave it out; on one GPU speed.offload lets blocks wait in host memory.",
        )
    obstacle = _obstacle(table, request, quantizer)
    if table["train"]["sharding"] == "sharded" and obstacle:
        why, fix = obstacle
        raise ConfigError("train.sharding = 'sharded' is not possible", where=where, why=why, fix=fix)


def _chosen(
    table: dict[str, Any], request: Request, family: Family, quantizers: Mapping[str, Part], card: Card
) -> tuple[str, str, str]:
    """The way, who chose it, and why."""
    name = table["quantization"]["name"]
    size = sized(family, table["variant"], table["model"]["source"])
    ahead = AHEAD if table["speed"]["modulation"] == "table" else 0
    held = size and base(size, name, family, quantizers, table["train"]["precision"], ahead=ahead)
    if not held:
        return "replicated", "lorakit", "every GPU has the whole base; nobody tells how much that is"
    known, takes = card(), f"the base takes {told(held)}"
    if known is None:
        return "replicated", "lorakit", f"every GPU has the whole base; {takes}, and no card is named or measured"
    has = f"{takes} and the {known.name} has {told(known.memory)}"
    if held + known.context <= known.memory:
        return "replicated", "lorakit", f"every GPU has the whole base: {has}"
    obstacle = _obstacle(table, request, quantizers[name])
    if obstacle:
        return "replicated", "lorakit", f"{has}, but it cannot be sharded: {obstacle[0]}"
    return "sharded", "lorakit", f"each GPU has a part of every block: {has}"


def _obstacle(table: dict[str, Any], request: Request, quantizer: Part) -> tuple[str, str] | None:
    """Why the base cannot be sharded and what to do, if it cannot."""
    speed = table["speed"]
    if quantizer.stays:
        return (
            f"layers under quantization.name = '{quantizer.name}' must lie whole on the device from the start",
            "Choose another quantization, or train.sharding = 'replicated'.",
        )
    if speed["offload"]:
        return (
            f"speed.offload = {speed['offload']} lets whole blocks wait in host memory",
            "Leave one of them out.",
        )
    if speed["compile"] != "off":
        return (
            "compiled code has not been tried on weights that come and go",
            "Leave speed.compile out.",
        )
    if request.settings.speed.recompute == "fit":
        return (
            "speed.recompute = 'fit' begins a batch anew where memory runs out, and all GPUs compute together",
            "Say how many blocks, or leave speed.recompute out.",
        )
    return None
