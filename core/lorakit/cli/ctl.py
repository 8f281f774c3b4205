"""`lorakit ctl`: what another process asks of a run that is under way."""

from __future__ import annotations

import json
import os
import socket
from dataclasses import asdict
from pathlib import Path

import click

from lorakit.channel import ask
from lorakit.errors import RunError

COMES = {
    "stop": "it stops after what is under way, and saves",
    "pause": "it holds after what is under way",
    "resume": "it goes on",
    "sample": "it draws every prompt after what is under way, or once training begins",
    "save": "it saves a checkpoint after what is under way, or after the first update",
}
"""What comes of what is asked, in words."""


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("what", type=click.Choice([*COMES, "status"]))
@click.option(
    "--timeout",
    type=click.FloatRange(0, 3600),
    default=10.0,
    show_default=True,
    metavar="SECONDS",
    help="How long to wait for an answer.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the answer as JSON.")
def ctl(run: Path, what: str, timeout: float, as_json: bool) -> None:
    """Ask the run in folder RUN, which is under way in another process, for something.

    `sample` draws previews and `save` saves a checkpoint now; neither changes what is learned. `status` only asks how
    it stands. The answer says that it was taken; what comes of it is told in the run's events.jsonl.
    """
    by = f"lorakit ctl, process {os.getpid()} on {socket.gethostname()}"
    answer = ask(run, what, by, timeout)
    if as_json:
        click.echo(json.dumps(asdict(answer)))
    if answer.refused:
        raise RunError(f"the run {run} does not {what}", why=answer.refused)
    if not as_json:
        comes = f"; {COMES[what]}" if what in COMES else ""
        click.echo(f"{what}: {answer.state}, process {answer.process} on {answer.host}{comes}")
