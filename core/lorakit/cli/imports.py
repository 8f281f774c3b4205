"""`lorakit import`: another trainer's configuration as lorakit's, with what became of every key."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lorakit.errors import ConfigError
from lorakit.kit import Kit

if TYPE_CHECKING:
    from lorakit.importers import Imported

COLOURS = {"changed": "yellow", "dead": "cyan", "refused": "red", "unknown": "magenta"}


@click.command("import")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("-o", "--output", metavar="TOML", type=click.Path(path_type=Path), help="File to write.")
@click.option(
    "--from", "by", metavar="NAME", help="Importer to use; `lorakit plugins` lists them. Default: by content."
)
@click.option(
    "--dataset", metavar="FILE", type=click.Path(path_type=Path), help="Dataset file, where it is one of its own."
)
@click.option("--family", metavar="FAMILY", help="Model family, where the file does not say it, or says another.")
@click.option("--variant", metavar="VARIANT", help="Published model of the family.")
@click.option("--json", "as_json", is_flag=True, help="Print settings and report as JSON.")
@click.pass_obj
def import_(kit: Kit, /, file: Path, output: Path | None, as_json: bool, **how: Any) -> int:
    """Read another trainer's configuration FILE: an ai-toolkit YAML, kohya's TOML or arguments, a diffusers command.

    Writes a TOML for --config and reports every key: carried over, changed, dead there too, refused or unknown. Without
    -o the TOML is printed and the report goes to the error output. Nothing in FILE is run.
    """
    from lorakit.importers.written import to_toml

    if output is not None and output.exists():
        raise ConfigError(f"there is a file {output} already", where="-o", fix="Choose another name, or remove it.")
    found = kit.imported(file, **how)
    if "family" not in found.table:
        raise ConfigError(f"{file} names no model that an installed family knows", fix="Say --family NAME.")
    _check(kit, found)
    text = to_toml(found)
    if output is not None:
        _write(output, text)
    if as_json:
        click.echo(json.dumps(asdict(found), indent=1, ensure_ascii=False))
        return 0
    _report(found, to_error=output is None)
    if output is None:
        click.echo(text, nl=False)
    else:
        click.echo(f"written      {output}; `lorakit plan --config {output}` shows the run")
    return 0


def _check(kit: Kit, found: Imported) -> None:
    """What was made must be a run of lorakit, but for pictures and weights, which may be on another machine."""
    table = {name: value for name, value in found.table.items() if name not in ("data", "model")}
    sampling = {name: value for name, value in found.table.get("sampling", {}).items() if name != "references"}
    kit.plan(kit.request({**table, "sampling": sampling}))


def _write(output: Path, text: str) -> None:
    try:
        output.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{output} cannot be written", where="-o", why=str(error)) from error


def _report(found: Imported, to_error: bool) -> None:
    click.echo(found.title, err=to_error)
    for heading, fate, lines in found.groups():
        click.echo(f"\n{click.style(heading, fg=COLOURS.get(fate or ''), bold=True)}", err=to_error)
        for line in lines:
            click.echo(f"  {line}", err=to_error)
    click.echo(err=to_error)
