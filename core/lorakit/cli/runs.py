"""`lorakit train` and `lorakit resume`: readers of the event stream, and the signals that stop it."""

from __future__ import annotations

import gc
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, TypeVar

import click

from lorakit import launched
from lorakit.checks import TOY
from lorakit.cli import STOPPED, options, plans
from lorakit.cli.quiet import hush
from lorakit.control import Control
from lorakit.kit import Kit
from lorakit.last_plan import remember

if TYPE_CHECKING:
    from lorakit.events import Event
    from lorakit.plan import Plan

Reader = Callable[["Event"], None]
Function = TypeVar("Function", bound=Callable[..., Any])


def track(function: Function) -> Function:
    """Add the options that name trackers."""
    many = "Show the run there too: tensorboard, wandb, mlflow, or one of a plugin; may be given again."
    function = click.option("--tensorboard", is_flag=True, help="The same as --track tensorboard.")(function)
    return click.option("--track", "trackers", multiple=True, metavar="NAME", help=many)(function)


@click.command()
@options.settings
@options.gpus
@click.option("--json", "as_json", is_flag=True, help="Print events as JSON lines, and nothing else.")
@track
@click.pass_obj
def train(kit: Kit, /, as_json: bool, trackers: tuple[str, ...], tensorboard: bool, **given: Any) -> int:
    """Teach a model from folders of pictures; the file lands in OUTPUT/NAME/NAME.safetensors.

    Ctrl-C stops after the update under way, with everything saved; `lorakit resume` goes on from there.
    """
    plan = kit.plan(options.request(kit, given))
    if not launched.number():
        remember(plan)
    if plan.settings.train.gpus > 1 and not launched.together() and not plan.errors:
        return launch(plan.settings.train.gpus)
    control = Control()
    if not as_json and not plan.errors and not launched.number():
        _introduce(plan)
    if plan.settings.model.source == TOY and not plan.errors:
        hush()  # a toy is written, by the model libraries, before the first event
    with stopping(control, as_json):
        return read(kit.train(plan, control, trackers=chosen(trackers, tensorboard)), readers_of(as_json))


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--set", "-s", "sets", multiple=True, metavar="KEY=VALUE", help="Change a setting, train.updates=900.")
@options.gpus
@click.option("--json", "as_json", is_flag=True, help="Print events as JSON lines, and nothing else.")
@track
@click.pass_obj
def resume(
    kit: Kit,
    /,
    run: Path,
    sets: tuple[str, ...],
    gpus: int | None,
    as_json: bool,
    trackers: tuple[str, ...],
    tensorboard: bool,
) -> int:
    """Go on with the run in folder RUN, from its newest whole checkpoint.

    How long the run is, its previews and what it saves may be changed with --set; with more updates or epochs, a
    finished run goes on. On another number of GPUs the same pictures come together as before.
    """
    control = Control()
    changes = options.changes(sets, gpus)
    wanted = kit.resumed(run, changes)[0].settings.train.gpus
    if wanted > 1 and not launched.together():
        return launch(wanted)
    with stopping(control, as_json):
        return read(kit.resume(run, control, changes, trackers=chosen(trackers, tensorboard)), readers_of(as_json))


def launch(count: int) -> int:
    """The exit code of this very command line, carried out by `count` processes under torchrun."""
    from lorakit.engine.torchrun import torchrun

    return torchrun(count, sys.argv[1:])


def _introduce(plan: Plan) -> None:
    settings = plan.settings
    base = "" if settings.quantization.name == "none" else f" in {settings.quantization.name}"
    click.echo(
        f"teaching     {settings.family} {settings.variant}{base}, rank {settings.lora.rank}, "
        f"{settings.optimizer.name} at {settings.optimizer.learning_rate:g} (`lorakit plan` shows all)"
    )
    plans.summary(plan)


def chosen(trackers: tuple[str, ...], tensorboard: bool) -> tuple[str, ...]:
    """The trackers that the options name."""
    return (*trackers, "tensorboard") if tensorboard else trackers


def readers_of(as_json: bool) -> list[Reader]:
    """Who reads a run's events: a program, or a person."""
    if launched.number():
        return []  # the first process tells of what all do
    if as_json:
        return [_JsonLines()]
    from lorakit.cli.progress import Progress

    return [Progress()]


class _JsonLines:
    """Prints each event as a line of JSON, and nothing else."""

    def __call__(self, event: Event) -> None:
        from lorakit.events import PhaseStarted

        if isinstance(event, PhaseStarted) and event.phase != "index":
            hush()
        click.echo(event.to_json())


def read(events: Iterator[Event], readers: list[Reader]) -> int:
    """Give every event to every reader; the exit code that they end with."""
    from lorakit.events import DrawingStopped, PhaseStarted, RecoveryStopped, RunStopped

    gc.enable()
    if launched.number():  # nothing comes from there that says when the model libraries are loaded
        hush()
    code = 0
    try:
        for event in events:
            if isinstance(event, PhaseStarted) and event.phase == "train":
                gc.collect()
                gc.freeze()  # a loaded model is large and never garbage, and this process is ours
            for reader in readers:
                reader(event)
            if isinstance(event, (RunStopped, RecoveryStopped, DrawingStopped)):
                code = 0 if launched.restartable() else STOPPED
    finally:
        gc.unfreeze()
        for reader in readers:
            close = getattr(reader, "close", None)
            if close:
                close()
    return code


@contextmanager
def stopping(control: Control, quiet: bool) -> Iterator[None]:
    """The first Ctrl-C or SIGTERM stops the run gently; the second one at once.

    One of several processes gets the same signal from the terminal, from torchrun and from a scheduler, and torchrun
    ends it where it takes too long: later ones mean nothing there.
    """

    once_more = "" if launched.together() else "; once more to stop at once"

    def stop(number: int, frame: FrameType | None) -> None:
        if control.stopping and launched.together():
            return
        if control.stopping:
            raise KeyboardInterrupt
        control.stop(signal.Signals(number).name)
        if not quiet and not launched.number():
            click.echo("\nstopping after what is under way" + once_more, err=True)

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
