"""`lorakit plugins`: what is installed, what it brings, and who decided what; `lorakit new-plugin`: one more."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import click

from lorakit.cli.lists import show
from lorakit.kit import Kit
from lorakit.last_plan import LastPlan, recall
from lorakit.plugins import CORE, Plugin, manager

WIDEST = 60
"""Characters of a setting with its value that are shown."""


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def plugins(kit: Kit, as_json: bool) -> None:
    """List the plugins with their hooks and what they bring, and who decided what in the last plan.

    That is the last one that `plan` or `train` made for this user.
    """
    last = recall()
    rows: list[dict[str, Any]] = [
        {
            "plugin": plugin.name,
            "version": plugin.version or "-",
            "hooks": _hooks(kit, plugin),
            "brings": _nouns(kit, plugin.name),
        }
        for plugin in kit.plugins
    ]
    if as_json:
        voices = {row["plugin"]: _voices(kit, row["plugin"]) for row in rows}
        heard = [{**row, "decided": _decided(last, voices[row["plugin"]])} for row in rows]
        show([{**row, "said": _said(last, voices[row["plugin"]])} for row in heard], True, "")
        return
    joined = [{**row, **{name: ", ".join(row[name]) or "-" for name in ("hooks", "brings")}} for row in rows]
    show(joined, False, "there are no plugins")
    if last is not None:
        _show_last(last)


def _hooks(kit: Kit, plugin: Plugin) -> list[str]:
    """The hooks that a plugin answers, and those that its families answer in their own runs."""
    families = kit.shelves.families
    parties = [(manager(kit.plugins), plugin.module)]
    parties += [
        (manager(kit.plugins, family), family)
        for name, family in families.items()
        if families.owner(name) == plugin.name
    ]
    return sorted({caller.name for pm, party in parties for caller in pm.get_hookcallers(party) or ()})


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
            shelves.settings,
        )
        for name in shelf
        if shelf.owner(name) == owner
    ]


# -- the last plan -----------------------------------------------------------------------------------------------


def _voices(kit: Kit, plugin: str) -> tuple[str, ...]:
    """The names under which a plugin decides: its own, and those of its families."""
    families = kit.shelves.families
    return (plugin, *(f"family {name}" for name in families if families.owner(name) == plugin))


def _decided(last: LastPlan | None, voices: Iterable[str]) -> list[str]:
    """What these decided."""
    wanted = set(voices)
    return [f"{one.setting} = {one.value}" for one in last.decisions if wanted & {*one.by}] if last else []


def _said(last: LastPlan | None, voices: Iterable[str]) -> list[str]:
    """What these said by rules, whether it decided anything or not."""
    wanted = set(voices)
    return (
        [f"{one.setting} {words}" for one in last.decisions for by, words in one.said if by in wanted] if last else []
    )


def _short(text: str) -> str:
    return text if len(text) <= WIDEST else f"{text[:WIDEST]}…"


def _show_last(last: LastPlan) -> None:
    click.echo(f"\nWho decided what in the last plan, {last.name} ({last.family}, {last.made}):\n")
    voices = sorted({by for one in last.decisions for by in (*one.by, *(who for who, _ in one.said))} - {CORE})
    rows = [
        {
            "who": who,
            "decided": ", ".join(map(_short, _decided(last, [who]))) or "-",
            "rules": ", ".join(_said(last, [who])) or "-",
        }
        for who in voices
    ]
    own = _decided(last, [CORE])
    rows.append({"who": CORE, "decided": f"{len(own)} other settings", "rules": ", ".join(_said(last, [CORE])) or "-"})
    show(rows, False, "nobody decided anything")


# -- a new one ---------------------------------------------------------------------------------------------------

ABOUT: Mapping[str, str] = {
    "family": "a model family: Stable Diffusion 1.5 on a toy, to be replaced by yours piece by piece",
    "rules": "rules, a check, a command and an event reader",
}


@click.command("new-plugin")
@click.argument("name")
@click.option("--kind", required=True, type=click.Choice(sorted(ABOUT)), help="What it brings.")
@click.option(
    "--output",
    metavar="DIR",
    default=".",
    type=click.Path(path_type=Path),
    help="Folder to write it in. Default: here.",
)
@click.pass_obj
def new_plugin(kit: Kit, /, name: str, kind: Literal["family", "rules"], output: Path) -> None:
    """Write the package of a new plugin, lorakit-NAME, which passes its own tests as it is.

    Nothing that exists is overwritten.
    """
    from lorakit.cli import build
    from lorakit.new_plugin import named, write

    taken = {plugin.name for plugin in kit.plugins} | set(kit.shelves.families) | set(build(kit).commands)
    naming = named(name, taken)
    files = write(naming, kind, output)
    place = output / naming.distribution
    click.echo(f"written      {place}: {ABOUT[kind]}")
    for file in files:
        click.echo(f"             {file.relative_to(place)}")
    click.echo(f"next         cd {place} && pip install -e '.[test]' && pytest && lorakit plugins")
