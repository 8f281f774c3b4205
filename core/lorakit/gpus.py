"""How many GPUs a run takes, how they share its batches, and what stays the same when there are more or fewer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from lorakit import launched
from lorakit.errors import ConfigError
from lorakit.rules import Choice

if TYPE_CHECKING:
    from lorakit.plan import Plan
    from lorakit.request import Request

TIMEOUT = 1800
"""Seconds: reading a text encoder from a slow disk is the longest that a process is silent in good order."""

BATCH = "train.gpus x train.batch_size"
"""What decides which pictures come together, and so stays the same for the whole life of a run."""


def decide(request: Request, put: Callable[[Choice], None]) -> None:
    """How many processes, and how long a silent one is waited for, where nobody says; refuses what cannot be."""
    train, started = request.settings.train, launched.count()
    if started is not None and train.gpus not in (None, started):
        raise ConfigError(
            f"train.gpus = {train.gpus}, and {started} processes were started",
            where=request.where("train.gpus"),
            fix="Leave train.gpus out, or start as many with torchrun.",
        )
    if train.gpus is None:
        because = "one GPU, where nobody asks for more" if started is None else "as many processes as were started"
        put(Choice("train.gpus", started or 1, "lorakit" if started is None else "torchrun", because))
    several = (train.gpus or started or 1) > 1
    if several and request.settings.model.device == "mps":
        raise ConfigError("several GPUs need cuda, and model.device = 'mps'", where=request.where("model.device"))
    if several and train.timeout is None:
        put(Choice("train.timeout", TIMEOUT, "lorakit", "the longest silence in good order is that of slow disks"))
    if train.timeout is not None and not several:
        raise ConfigError(
            "train.timeout would have no effect",
            where=request.where("train.timeout"),
            why="one process waits for no other",
            fix="Leave it out.",
        )


def others(plan: Plan, gpus: int) -> dict[str, Any]:
    """The settings with which the plan's run goes on, on as many GPUs, with the same pictures together as before."""
    train = plan.settings.train
    if train.global_batch % gpus:
        raise ConfigError(
            f"a batch of {train.global_batch} pictures cannot be shared evenly among {gpus} GPUs",
            why=f"the run began with {train.gpus} x {train.batch_size}, and the same pictures stay together",
            fix=f"Take {_divisors(train.global_batch)} GPUs.",
        )
    return {"train": {"gpus": gpus, "batch_size": train.global_batch // gpus}}


def _divisors(number: int) -> str:
    *some, last = [str(one) for one in range(1, number + 1) if number % one == 0]
    return f"{', '.join(some)} or {last}" if some else last


def together(settings: Mapping[str, Any]) -> Mapping[str, Any]:
    """Settings by dotted name, with what all GPUs take at once in place of how many there are and what each takes."""
    if "train.batch_size" not in settings:
        return settings
    rest = {name: value for name, value in settings.items() if name not in ("train.gpus", "train.batch_size")}
    return {**rest, BATCH: settings["train.batch_size"] * settings.get("train.gpus", 1)}
