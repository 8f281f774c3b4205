"""`lorakit check`: what is odd about the pictures and captions of a run."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import click

from lorakit.cli import options
from lorakit.errors import ConfigError
from lorakit.kit import Kit
from lorakit.words import count


@click.command()
@click.argument("folder", nargs=-1, required=False)
@options.settings
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def check(kit: Kit, /, folder: tuple[str, ...], as_json: bool, **given: Any) -> int:
    """Say what is odd about the pictures in FOLDER and their captions, as the family advises them.

    Takes the same options as train, so that the prompts of previews are looked at too. Leaves with 1 where anything
    was found.
    """
    from lorakit.audit import audit
    from lorakit.dataset import index

    given["data"] = (*folder, *given["data"])
    if not given["data"] and given["config"] is None:
        raise ConfigError("no folder is named", fix="Say lorakit check FOLDER --family NAME.")
    plan = kit.plan(options.request(kit, given))
    family, settings = kit.shelves.families[plan.settings.family], plan.settings
    dataset = index(settings.data, family.planned_sizing(settings))
    asked = "sampling.prompts" in plan.choices and plan.choices["sampling.prompts"].because.startswith("asked for")
    prompts = settings.sampling.prompts if asked else ()
    found = list(audit(dataset, prompts, settings.trigger, family.caption_advice))
    if as_json:
        click.echo(json.dumps([asdict(finding) for finding in found], indent=1))
        return 1 if found else 0
    for finding in found:
        click.echo(f"{finding.where}: {finding.message}" if finding.where else finding.message)
    if found and family.caption_advice:
        click.echo(f"the advice is {family.caption_advice.because}")
    click.echo(f"{count(len(dataset.samples), 'picture')} looked at, {count(len(found), 'finding')}")
    return 1 if found else 0
