"""`lorakit compare --train`: the same pictures, seed and prompts for each preset, and a page of what came of it."""

from __future__ import annotations

import gc
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lorakit.cli.runs import read, readers_of, stopping
from lorakit.control import Control
from lorakit.errors import ConfigError
from lorakit.kit import Kit

if TYPE_CHECKING:
    from lorakit.config import Layer
    from lorakit.events import Event
    from lorakit.plan import Plan

PAGE = "compare.html"


def train_all(kit: Kit, presets: Sequence[str], layers: Sequence[Layer], output: Path, *, as_json: bool) -> int:
    """Train each preset that is not trained yet, and write the page; the exit code."""
    from lorakit import compare_page, history
    from lorakit.compare import Side

    if len(set(presets)) < len(presets):
        raise ConfigError("a preset is named twice", fix="Name each once; `--set` changes a setting of all.")
    plans = _plans(kit, presets, layers, output)
    control = Control()
    with stopping(control, as_json):
        for title, plan in zip(presets, plans, strict=True):
            if not as_json:
                click.echo(f"\n{title}")
            code = read(_events(kit, plan, control), readers_of(as_json))
            if code:
                return code
            gc.collect()  # what a run leaves refers to itself; the next model needs its room
    sides = [Side(title, plan) for title, plan in zip(presets, plans, strict=True)]
    compare_page.write(sides, [history.read(plan.folder) for plan in plans], output / PAGE)
    if not as_json:
        click.echo(f"\npage         {output / PAGE}")
    return 0


def _plans(kit: Kit, presets: Sequence[str], layers: Sequence[Layer], output: Path) -> list[Plan]:
    """The plan of each, in a folder of its own, with the first one's seed and prompts; every error comes first."""
    from lorakit.cli.compare import planned
    from lorakit.config import Layer

    plans: list[Plan] = []
    for title in presets:
        name = re.sub(r"[^A-Za-z0-9._-]+", "-", title)
        own = Layer({"name": name, "output": str(output)}, "lorakit compare")
        first: dict[str, object] = {}
        if plans:
            settings = plans[0].settings
            first = {"seed": settings.seed, "sampling": {"prompts": settings.sampling.prompts}}
        plans.append(planned(kit, title, [Layer(first, f"the seed and prompts of {presets[0]}"), *layers, own]))
    wrong = [f"{title}: {one.message}" for title, plan in zip(presets, plans, strict=True) for one in plan.errors]
    if wrong:
        raise ConfigError("; ".join(wrong), fix="Nothing was trained.")
    return plans


def _events(kit: Kit, plan: Plan, control: Control) -> Iterator[Event]:
    """What is still to be done of a plan: all of it, the rest of it, or nothing."""
    from lorakit import history
    from lorakit.changes import compared

    if not (plan.folder / "plan.json").is_file():
        yield from kit.train(plan, control)
        return
    done = history.read(plan.folder)
    _, changed = compared(done.plan, plan)
    if changed:
        raise ConfigError(
            f"the run in {plan.folder} was begun otherwise: {'; '.join(changed)}",
            fix="Ask for the same again, or name another --output.",
        )
    if done.finished:
        return
    yield from kit.resume(plan.folder, control)
