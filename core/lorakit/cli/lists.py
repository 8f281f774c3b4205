"""Commands that list what there is: families, presets, and the schema of the configuration."""

from __future__ import annotations

import json
from typing import Any

import click

from lorakit.kit import Kit


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def families(kit: Kit, as_json: bool) -> None:
    """List the model families and their variants."""
    rows = [
        {
            "family": name,
            "variant": variant,
            "model": about.source,
            "about": about.summary,
            "plugin": kit.shelves.families.owner(name),
        }
        for name, family in kit.shelves.families.items()
        for variant, about in family.variants.items()
    ]
    show(rows, as_json, "no family is installed")


@click.command()
@click.argument("family", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def presets(kit: Kit, family: str | None, as_json: bool) -> None:
    """List the presets, of one FAMILY or of all."""
    if family is not None:
        kit.shelves.families.find(family, "the command line")
    rows = [
        {
            "preset": name,
            "about": _first_comment(path.read_text(encoding="utf-8")),
            "plugin": kit.shelves.presets.owner(name),
        }
        for name, path in kit.shelves.presets.items()
        if family in (None, name.partition("/")[0])
    ]
    show(rows, as_json, "there are no presets")


@click.command()
@click.pass_obj
def schema(kit: Kit, /) -> None:
    """Print the JSON schema of a run's TOML, for editors."""
    from lorakit import config

    click.echo(config.schema(kit.shelves.settings), nl=False)


def _first_comment(text: str) -> str:
    first = text.lstrip().splitlines()[0] if text.strip() else ""
    return first.lstrip("# ") if first.startswith("#") else ""


def show(rows: list[dict[str, Any]], as_json: bool, nothing: str) -> None:
    """Print rows as a table, or as JSON."""
    if as_json:
        click.echo(json.dumps(rows, indent=1))
        return
    if not rows:
        click.echo(nothing)
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in rows[0]:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*row.values())
    Console(highlight=False).print(table)
