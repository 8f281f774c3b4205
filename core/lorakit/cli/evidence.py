"""`lorakit pick` and `lorakit report`: what a run's own figures and pictures say of its checkpoints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lorakit.cli.quiet import shown

if TYPE_CHECKING:
    from lorakit.evidence import Recommendation
    from lorakit.evidence.choosing import Ranked

TOP = 3


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--most-drift",
    metavar="SHARE",
    type=click.FloatRange(min=0, min_open=True),
    help="Drift over which a checkpoint is dropped (0.5).",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def pick(run: Path, most_drift: float | None, as_json: bool) -> int:
    """Recommend a checkpoint of the run in folder RUN, and say why and how sure that is.

    Broken and far drifting checkpoints are dropped; those within one standard error of the lowest held-out loss stay;
    first comes the most trigger sensitivity for its drift. The training loss is never used. RUN/recommended.json names
    what is recommended; nothing is removed or moved. Leaves with 1 where every checkpoint is dropped.
    """
    from lorakit import evidence, history
    from lorakit.evidence import words

    found = history.read(run)
    previews = evidence.judged(found)
    made = evidence.recommend(evidence.candidates(found, previews), most_drift or evidence.MOST_DRIFT)
    if as_json:
        click.echo(json.dumps(evidence.table(found, made, previews), indent=1))
    else:
        for line in _lines(made, words.weak(found, made, previews)):
            click.echo(shown(line))
    file = evidence.mark(found, made, previews)  # last, for the answer does not depend on a folder that can be written
    if not as_json:
        click.echo(shown(f"written      {file}"))
    return 0 if made.first else 1


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--output", "-o", metavar="FILE", type=click.Path(path_type=Path), help="Where to write the page.")
def report(run: Path, output: Path | None) -> int:
    """Write the report of the run in folder RUN: one HTML page that needs nothing else.

    Every run writes it as RUN/report.html, at each checkpoint and at its end; this writes it anew, or elsewhere, also
    for a run that is under way or came from an older version.
    """
    from lorakit import history
    from lorakit.report import write

    file = output or run / history.REPORT
    write(history.read(run), file, "--output" if output else "the run's folder")
    click.echo(shown(f"report       {file}"))
    return 0


def _lines(made: Recommendation, weak: list[str]) -> list[str]:
    from lorakit.evidence import words

    lines: list[str] = []
    if made.first is None:
        lines.append("recommended  none: every checkpoint is dropped")
    for place, one in enumerate(made.ranked[:TOP]):
        lines += _of_one("recommended" if not place else "then", one, made)
    if made.band:
        lines.append(f"order        {words.order(made)}")
    for gone in made.dropped:
        lines.append(f"dropped      update {gone.candidate.update}: {gone.why}")
    if told := words.course(made):
        lines.append(f"the run      {told}")
    if weak:
        lines += ["evidence     weak:", *(f"             - {one}" for one in weak)]
    return lines


def _of_one(head: str, one: Ranked, made: Recommendation) -> list[str]:
    from lorakit.evidence import words

    first = f"{head:<13}update {one.candidate.update}  {one.candidate.file}"
    return [first, *(f"             {reason}" for reason in words.reasons(one, made))]
