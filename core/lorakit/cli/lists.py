"""Commands that list what there is: families, presets, plugins, and the schema of the configuration."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import click
import pluggy

from lorakit.kit import Kit
from lorakit.plugins import manager


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
    _show(rows, as_json, "no family is installed")


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
    _show(rows, as_json, "there are no presets")


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def plugins(kit: Kit, as_json: bool) -> None:
    """List the plugins with their hooks and what they bring."""
    pm = manager(kit.plugins)
    rows = [
        {
            "plugin": plugin.name,
            "version": plugin.version or "-",
            "hooks": ", ".join(sorted(caller.name for caller in _hooks(pm, plugin.module))) or "-",
            "brings": ", ".join(_nouns(kit, plugin.name)) or "-",
        }
        for plugin in kit.plugins
    ]
    _show(rows, as_json, "there are no plugins")


@click.command()
def schema() -> None:
    """Print the JSON schema of a run's TOML, for editors."""
    from lorakit import config

    click.echo(config.schema(), nl=False)


def _hooks(pm: pluggy.PluginManager, module: object) -> Sequence[pluggy.HookCaller]:
    return pm.get_hookcallers(module) or ()


def _nouns(kit: Kit, owner: str) -> list[str]:
    shelves = kit.shelves
    return [
        f"{shelf.kind} {name}"
        for shelf in (
            shelves.families,
            shelves.schedulers,
            shelves.quantizers,
            shelves.optimizers,
            shelves.importers,
            shelves.trackers,
            shelves.presets,
        )
        for name in shelf
        if shelf.owner(name) == owner
    ]


def _first_comment(text: str) -> str:
    first = text.lstrip().splitlines()[0] if text.strip() else ""
    return first.lstrip("# ") if first.startswith("#") else ""


def _show(rows: list[dict[str, Any]], as_json: bool, nothing: str) -> None:
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
