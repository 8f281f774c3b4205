"""How a run's processes find one another, and see that they are about to do the same, with the same versions."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import PrefixStore  # type: ignore[attr-defined]
from torch.distributed.rendezvous import rendezvous

from lorakit import launched
from lorakit.config import leaves
from lorakit.control import Control
from lorakit.engine import memory
from lorakit.engine.causes import GOES_ON
from lorakit.engine.crew import Crew
from lorakit.engine.phases import StopAsked
from lorakit.engine.ranks import ALONE, Ranks
from lorakit.engine.versions import versions
from lorakit.errors import ConfigError, RunError, StallError
from lorakit.gpus import TIMEOUT
from lorakit.plan import Plan

OWN = ("model.device",)
"""Settings that may differ between processes."""


@contextmanager
def joined(plan: Plan, control: Control, goes_on: str = GOES_ON) -> Iterator[Ranks]:
    """The processes that carry the plan out together, connected; this one alone where the plan takes one GPU.

    An error is told to all others; the first that was told anywhere is the one that is raised everywhere. `goes_on`
    says what to do after one. StopAsked where somebody asked to stop before all were connected.
    """
    if plan.settings.train.gpus != (launched.count() or 1):
        raise RunError(
            f"the plan is for {plan.settings.train.gpus} GPUs, and {launched.count() or 1} processes were started",
            where="train.gpus",
            fix="Start as many with --gpus or torchrun.",
        )
    if plan.settings.train.gpus == 1:
        yield ALONE
        return
    crew = _met(plan, control, goes_on)
    try:
        _agree(crew, plan)
        crew.connect()
        yield crew
    except StopAsked:
        crew.leave(None, control.reason)
        raise
    except Exception as error:
        crew.leave(error, "")
        raise crew.blamed(error) from error
    except BaseException as error:
        crew.leave(error, "asked to stop")
        raise
    finally:
        crew.part()
        if dist.is_initialized():
            dist.destroy_process_group()


def _met(plan: Plan, control: Control, goes_on: str) -> Crew:
    """This process among the others, which leave notes for one another and are not connected yet."""
    timeout = plan.settings.train.timeout or TIMEOUT
    try:
        store, number, count = next(iter(rendezvous("env://", timeout=timedelta(seconds=timeout))))
    except (dist.DistError, ValueError) as error:
        raise StallError(
            "the processes do not find one another",
            why=str(error).splitlines()[0],
            fix="See MASTER_ADDR and MASTER_PORT, and that the network lets them through.",
        ) from None
    turn = store.add(f"lorakit {launched.restarts()} {number}", 1)  # of several runs of the same processes
    notes = PrefixStore(f"lorakit {launched.restarts()} {turn}", store)
    sharded = plan.settings.train.sharding == "sharded"
    return Crew(notes, number, count, _device(plan), timeout, control, lockstep=sharded, goes_on=goes_on)


def _device(plan: Plan) -> torch.device:
    """The GPU that is this process' own, or the CPU where there are none."""
    found, own = memory.device_for(plan.settings.model.device), launched.local()
    if found.type != "cuda":
        return torch.device("cpu")
    if own >= torch.cuda.device_count():
        raise ConfigError(
            f"process {own} of {socket.gethostname()} has no GPU: there are {torch.cuda.device_count()}",
            where="train.gpus",
            fix="Start at most as many processes on a host as it has GPUs.",
        )
    torch.cuda.set_device(own)
    return torch.device("cuda", own)


def _agree(crew: Crew, plan: Plan) -> None:
    """Raise where any process has other versions, settings or pictures than the first; all wait for its word."""
    facts = {"host": socket.gethostname(), "versions": dict(versions()), "plan": _meant(plan)}
    everybody = crew.told(facts)
    if crew.first:
        for number, other in enumerate(everybody):
            _compare(facts, other, f"process {number} on {other['host']}")
    crew.said("welcome")


def _meant(plan: Plan) -> dict[str, Any]:
    settings = dict(leaves(plan.settings.model_dump(mode="json")))
    return {"the pictures and captions": plan.dataset, **{name: settings[name] for name in settings if name not in OWN}}


def _compare(own: dict[str, Any], other: dict[str, Any], who: str) -> None:
    for name, version in own["versions"].items():
        if other["versions"].get(name) != version:
            raise RunError(
                f"{who} has {name} {other['versions'].get(name, 'not at all')}, and process 0 on {own['host']} has "
                f"{name} {version}",
                why="other versions compute other gradients",
                fix="Install the same versions everywhere; constraints.txt pins them.",
            )
    for name, value in own["plan"].items():
        if other["plan"].get(name) != value:
            raise RunError(
                f"{who} has another plan: {name} is not as process 0 has it on {own['host']}",
                fix="Start all processes with the same command, and let all hosts see the same files.",
            )
