"""`lorakit pick` and `lorakit report`: what a run's own figures and pictures say of its checkpoints."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lorakit.cli.quiet import shown
from lorakit.kit import Kit

if TYPE_CHECKING:
    from lorakit.evidence import Likeness, Recommendation
    from lorakit.evidence.choosing import Ranked

TOP = 3

judge = click.option(
    "--judge",
    "judges",
    multiple=True,
    metavar="FOLDER",
    type=click.Path(path_type=Path),
    help="DINOv2 or CLIP model on this machine to show previews to; may be given again.",
)


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--most-drift",
    metavar="SHARE",
    type=click.FloatRange(min=0, min_open=True),
    help="Drift over which a checkpoint is dropped (0.5).",
)
@judge
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def pick(kit: Kit, /, run: Path, most_drift: float | None, judges: tuple[Path, ...], as_json: bool) -> int:
    """Recommend a checkpoint of the run in folder RUN, and say why and how sure that is.

    Broken and far drifting checkpoints are dropped; those within one standard error of the lowest held-out loss stay;
    first comes the most trigger sensitivity for its drift. The training loss is never used. RUN/recommended.json names
    what is recommended; nothing is removed or moved. Leaves with 1 where every checkpoint is dropped.

    A judge measures how like the previews are to the training pictures and, where it is CLIP, to their prompts. That is
    told and decides nothing. RUN/judged.json keeps its answers; nothing is downloaded.
    """
    from lorakit import evidence, history
    from lorakit.evidence import words

    found = history.read(run)
    previews = evidence.judged(found)
    judged = kit.likeness(run, judges)
    made = evidence.recommend(evidence.candidates(found, previews, judged), most_drift or evidence.MOST_DRIFT)
    if as_json:
        click.echo(json.dumps(evidence.table(found, made, previews, judged), indent=1))
    else:
        for line in (*_lines(made, words.weak(found, made, previews)), *_judged(judged)):
            click.echo(shown(line))
    file = evidence.mark(
        found, made, previews, judged
    )  # last, for the answer does not depend on a folder that can be written
    if not as_json:
        click.echo(shown(f"written      {file}"))
    return 0 if made.first else 1


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--output", "-o", metavar="FILE", type=click.Path(path_type=Path), help="Where to write the page.")
@judge
@click.pass_obj
def report(kit: Kit, /, run: Path, output: Path | None, judges: tuple[Path, ...]) -> int:
    """Write the report of the run in folder RUN: one HTML page that needs nothing else.

    Every run writes it as RUN/report.html, at each checkpoint and at its end; this writes it anew, or elsewhere, also
    for a run that is under way or came from an older version. What judges say of the previews is drawn over updates.
    """
    from lorakit import history
    from lorakit.report import write

    file = output or run / history.REPORT
    judged = kit.likeness(run, judges)
    write(history.read(run), file, "--output" if output else "the run's folder", judged)
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


def _judged(judged: tuple[Likeness, ...]) -> Iterator[str]:
    """What each judge says of every update that drew something."""
    from lorakit.evidence import words

    for told in judged:
        yield f"judge        {told.judge.title}: {words.judge(told)}"
        yield from (
            f"             update {update}: {words.similar(told.of(update)) or 'nothing'}" for update in told.updates
        )
