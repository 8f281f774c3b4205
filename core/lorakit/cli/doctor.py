"""`lorakit doctor`: whether this machine can train, a line for each thing that was tried."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import click

from lorakit.kit import Kit
from lorakit.words import count

COLOURS = {"ok": "green", "warning": "yellow", "problem": "red"}


@click.command()
@click.option(
    "--output", metavar="DIR", default="runs", show_default=True, type=click.Path(path_type=Path),
    help="Folder that runs would be made in.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def doctor(kit: Kit, /, output: Path, as_json: bool) -> int:
    """Try what training needs on this machine: packages, GPU, memory, kernels, quantizers, optimizers, disk, hub cache.

    Leaves with 1 where something is broken. Warnings are no reason to.
    """
    found = []
    for one in kit.doctor(output):
        found.append(one)
        if not as_json:
            state = click.style(f"{one.state:8}", fg=COLOURS[one.state])
            click.echo(f"{state} {one.subject:20} {one.said}")
            if one.state != "ok" and one.remedy:
                click.echo(f"{'':29} {one.remedy}")
    states = Counter(one.state for one in found)
    if as_json:
        click.echo(json.dumps([asdict(one) for one in found], indent=1))
    else:
        click.echo(f"{count(states['problem'], 'problem')}, {count(states['warning'], 'warning')}")
    return 1 if states["problem"] else 0
