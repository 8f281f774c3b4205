"""`lorakit compare`: presets of any families side by side, before anything is loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lorakit.cli import options
from lorakit.errors import ConfigError
from lorakit.kit import Kit

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lorakit.compare import Side
    from lorakit.config import Layer
    from lorakit.plan import Plan


@click.command()
@click.argument("presets", nargs=-1, required=True, metavar="FAMILY/PRESET...")
@click.option("--data", "-d", multiple=True, metavar="DIR", help="Folder of pictures; may be given again.")
@click.option("--trigger", metavar="WORD", help="Word that calls what is taught.")
@click.option("--set", "-s", "sets", multiple=True, metavar="KEY=VALUE", help="One setting for all, train.epochs=5.")
@click.option("--gpu", metavar="NAME", help="GPU to estimate for, as 4090, L40S or H100.")
@click.option("--json", "as_json", is_flag=True, help="Print the comparison as JSON.")
@click.option("--markdown", is_flag=True, help="Print a table in Markdown.")
@click.option("--train", "trains", is_flag=True, help="Train each, one after another, and write a page of all.")
@click.option("--output", metavar="DIR", help="Folder of the runs and the page; with --train.")
@click.pass_obj
def compare(
    kit: Kit,
    /,
    presets: tuple[str, ...],
    data: tuple[str, ...],
    trigger: str | None,
    sets: tuple[str, ...],
    gpu: str | None,
    as_json: bool,
    markdown: bool,
    trains: bool,
    output: str | None,
) -> int:
    """Show presets side by side: the settings that differ, who decided each, and what each run takes.

    Without --train nothing is loaded and nothing is written. With it, each is trained on the same pictures with the
    same seed and prompts, in OUTPUT (runs/compare); called again, what is finished is not done again, and what was
    stopped goes on.
    """
    from lorakit import compare as comparing

    if as_json and markdown:
        raise ConfigError("--json and --markdown exclude each other", fix="Leave one of them out.")
    if output is not None and not trains:
        raise ConfigError("--output has no effect without --train", fix="Add --train, or leave it out.")
    for name, said in (("--gpu", gpu is not None), ("--markdown", markdown)):
        if trains and said:
            raise ConfigError(f"{name} has no effect with --train", fix="Leave one of them out.")
    given = {"data": data, "trigger": trigger}
    layers = options.layers(kit, None, sets, given)
    if len(presets) < 2:
        raise ConfigError("one preset alone cannot be compared", fix="Name two or more, as FAMILY/PRESET.")
    if trains:
        from lorakit.cli.compared import train_all

        return train_all(kit, presets, layers, Path(output or "runs/compare"), as_json=as_json)
    sides = [_side(kit, one, layers, gpu) for one in presets]
    if as_json:
        click.echo(json.dumps(comparing.table(sides), indent=1))
    elif markdown:
        click.echo(comparing.markdown(sides))
    else:
        _show(sides)
    return 2 if any(side.plan.errors for side in sides if side.plan.settings.data) else 0


def planned(kit: Kit, title: str, layers: Sequence[Layer]) -> Plan:
    """The plan of one preset, with the layers over it."""
    from lorakit.config import Layer

    family, slash, name = title.partition("/")
    if not slash or not family or not name:
        raise ConfigError(f"{title!r} is not of the form FAMILY/PRESET", fix="`lorakit presets` lists them.")
    return kit.plan(kit.request(Layer({"family": family, "preset": title}, "the command line"), *layers))


def _side(kit: Kit, title: str, layers: Sequence[Layer], gpu: str | None) -> Side:
    """The plan of one preset, and what it takes."""
    from lorakit.compare import Side, Taken

    plan = planned(kit, title, layers)
    made = kit.estimate(plan, gpu=gpu)
    if made is None:
        return Side(title, plan)
    memory, time = made.chosen, made.duration
    return Side(
        title,
        plan,
        Taken(
            memory=memory.peak if memory else None,
            update=time.update if time else None,
            whole=time.whole if time else None,
        ),
    )


def _show(sides: Sequence[Side]) -> None:
    """Print the comparison for a person."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from lorakit.compare import rows

    table = Table(box=box.SIMPLE_HEAD, show_edge=False)
    table.add_column("", overflow="fold")
    for side in sides:
        table.add_column(Text(side.title), overflow="fold")
    for name, cells in rows(sides):
        shown = [Text.assemble(value, (f"\n{why}", "dim") if why else "") for value, why in cells]
        table.add_row(Text(name), *shown)
    console = Console(highlight=False)
    console.print(table)
    for side in sides:
        for problem in side.plan.problems if side.plan.settings.data else ():
            console.print(f"{problem.severity}: {side.title}: {problem.message}", markup=False, soft_wrap=True)
