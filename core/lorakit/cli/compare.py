"""`lorakit compare`: presets of any families side by side, before anything is loaded."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from lorakit.cli import options
from lorakit.errors import ConfigError
from lorakit.kit import Kit

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lorakit.compare import Side


@click.command()
@click.argument("presets", nargs=-1, required=True, metavar="FAMILY/PRESET...")
@click.option("--data", "-d", multiple=True, metavar="DIR", help="Folder of pictures; may be given again.")
@click.option("--trigger", metavar="WORD", help="Word that calls what is taught.")
@click.option("--set", "-s", "sets", multiple=True, metavar="KEY=VALUE", help="One setting for all, train.epochs=5.")
@click.option("--gpu", metavar="NAME", help="GPU to estimate for, as 4090, L40S or H100.")
@click.option("--json", "as_json", is_flag=True, help="Print the comparison as JSON.")
@click.option("--markdown", is_flag=True, help="Print a table in Markdown.")
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
) -> int:
    """Show presets side by side: the settings that differ, who decided each, and what each run takes.

    Nothing is loaded and nothing is written.
    """
    from lorakit import compare as comparing

    if as_json and markdown:
        raise ConfigError("--json and --markdown exclude each other", fix="Leave one of them out.")
    given = {"data": data, "trigger": trigger}
    sides = [_side(kit, one, options.layers(kit, None, sets, given), gpu) for one in presets]
    if len(sides) < 2:
        raise ConfigError("one preset alone cannot be compared", fix="Name two or more, as FAMILY/PRESET.")
    if as_json:
        click.echo(json.dumps(comparing.table(sides), indent=1))
    elif markdown:
        click.echo(comparing.markdown(sides))
    else:
        _show(sides)
    return 2 if any(side.plan.errors for side in sides if side.plan.settings.data) else 0


def _side(kit: Kit, title: str, layers: Sequence[object], gpu: str | None) -> Side:
    """The plan of one preset, and what it takes."""
    from lorakit.compare import Side, Taken
    from lorakit.config import Layer

    family, slash, name = title.partition("/")
    if not slash or not family or not name:
        raise ConfigError(f"{title!r} is not of the form FAMILY/PRESET", fix="`lorakit presets` lists them.")
    plan = kit.plan(kit.request(Layer({"family": family, "preset": title}, "the command line"), *layers))  # type: ignore[arg-type]
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
