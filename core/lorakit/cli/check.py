"""`lorakit check`: what is odd about the pictures and captions of a run."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lorakit.cli import options
from lorakit.errors import ConfigError
from lorakit.kit import Kit

if TYPE_CHECKING:
    from lorakit.audit import Asked


RESOLUTION, SIDES = 1024, 16  # where no family says otherwise, in pixels
MOST_REFERENCES = 3


@click.command()
@click.argument("folder", nargs=-1, required=False)
@options.settings
@click.option("--html", "-o", metavar="FILE", type=click.Path(path_type=Path), help="Write a page with every finding.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def check(kit: Kit, /, folder: tuple[str, ...], html: Path | None, as_json: bool, **given: Any) -> int:
    """Say what is odd about the pictures in FOLDER and their captions.

    Every picture is decoded whole, compared with the others and held against the size it is trained at: 1024², or what
    the family and the settings say. With --family, captions are held against its advice. Takes the same options as
    train, so that the prompts of previews are looked at too. Leaves with 1 where anything was found.
    """
    from lorakit.audit import audit, summary

    given["data"] = (*folder, *given["data"])
    if not given["data"] and given["config"] is None:
        raise ConfigError("no folder is named", fix="Say lorakit check FOLDER.")
    asked = _asked(kit, given) if _is_for_a_run(given) else _of_no_family(given["data"], given["trigger"] or "")
    with _progress() as tell:
        report = audit(asked, tell)
    if html is not None:
        from lorakit.audit import page

        page.write(report, html)
    if as_json:
        click.echo(json.dumps(report.plain(), indent=1))
    else:
        for line in summary.lines(report, html):
            click.echo(line)
    return 1 if report.findings else 0


def _is_for_a_run(given: dict[str, Any]) -> bool:
    """Whether anything but folders and a trigger word is said: then it is about one run, whose family counts."""
    return any(value not in (None, ()) for name, value in given.items() if name not in ("data", "trigger"))


def _of_no_family(folders: tuple[str, ...], trigger: str) -> Asked:
    """Pictures for whichever model: the area that today's models are trained at, and sides that suit all."""
    from lorakit.audit import Asked
    from lorakit.dataset import Sizing
    from lorakit.planned import PlannedData

    tables = [PlannedData(folder=folder, trigger=trigger, resolution=RESOLUTION) for folder in folders]
    return Asked(tables=tables, sizing=Sizing(SIDES, MOST_REFERENCES), trigger=trigger)


def _asked(kit: Kit, given: dict[str, Any]) -> Asked:
    """What the options ask for, planned as if there were no pictures: those may be broken."""
    from lorakit import planner
    from lorakit.audit import Asked
    from lorakit.planned import PlannedData

    request = options.request(kit, given)
    if not request.settings.data:
        raise ConfigError("no folder is named", fix="Say lorakit check FOLDER, or write [[data]] in the configuration.")
    plan = kit.plan(replace(request, settings=request.settings.model_copy(update={"data": ()})))
    family, settings = kit.shelves.families[plan.settings.family], plan.settings
    tables = planner.tables(
        [one.model_dump() for one in request.settings.data], settings.trigger, settings.train.resolution
    )
    return Asked(
        tables=[PlannedData.model_validate(one) for one in tables],
        sizing=family.planned_sizing(settings),
        batch_size=settings.train.global_batch,
        trigger=settings.trigger,
        prompts=request.settings.sampling.prompts or (),
        advice=family.caption_advice,
    )


@contextmanager
def _progress() -> Iterator[Callable[[int, int], object]]:
    """A line on the terminal that says how far it is, where somebody looks at it."""
    if not sys.stderr.isatty():
        yield lambda done, total: None
        return

    def tell(done: int, total: int) -> None:
        if done % 20 == 0 or done == total:
            end = "\r" + " " * 60 + "\r" if done == total else ""
            click.echo(f"\rlooking at pictures: {done} of {total}{end}", nl=False, err=True)

    yield tell
