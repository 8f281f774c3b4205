"""How a run begins and how it goes on: its folder held alone, its plan written, its newest whole checkpoint found."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from lorakit import launched
from lorakit.changes import refuse_changed
from lorakit.channel import reachable
from lorakit.control import Control
from lorakit.engine import checkpoint, run_folder
from lorakit.engine.checkpoint import Newest
from lorakit.engine.joining import joined
from lorakit.engine.optimizers import learning_rate
from lorakit.engine.phases import StopAsked
from lorakit.engine.ranks import Ranks
from lorakit.engine.run import Run
from lorakit.engine.run_folder import alone, claim, discard, recorded, refuse_if_taken
from lorakit.errors import LorakitError, RunError
from lorakit.events import Event, RunStopped
from lorakit.plan import Plan
from lorakit.registry import Shelves
from lorakit.words import count


def train(plan: Plan, shelves: Shelves, control: Control) -> Iterator[Event]:
    """Start the run; its folder is made once what can be checked before is, and stays only with a run in it.

    Of several processes the first yields the events; the others yield none.
    """
    try:
        with joined(plan, control) as ranks:
            if ranks.first:
                yield from _begun(plan, shelves, control, ranks)
            else:
                _follow(plan, shelves, control, ranks)
    except StopAsked:  # before there was a run to tell of it
        yield from _not_begun(plan, control)


def _follow(plan: Plan, shelves: Shelves, control: Control, ranks: Ranks) -> None:
    """Take part in the run of the first process, which holds the folder, from where it says."""
    start = ranks.said(None)
    for _ in Run(plan, shelves, control, ranks).events(start):
        pass


def _begun(plan: Plan, shelves: Shelves, control: Control, ranks: Ranks) -> Iterator[Event]:
    refuse_if_taken(plan)
    run = Run(plan, shelves, control, ranks)
    with alone(plan.folder):
        refuse_if_taken(plan)  # again: somebody may have finished since
        folder = claim(plan)
        ranks.said(0)
        try:
            with reachable(folder, control) as why:
                yield from recorded(folder, run.events(notes=[why] if why else []))
        except LorakitError:
            if not (run.trainer and run.trainer.updates):
                discard(folder)
            raise


def resume(
    folder: Path, plan: Plan, shelves: Shelves, control: Control, changed: Sequence[str] = ()
) -> Iterator[Event]:
    """Go on from the newest whole checkpoint, or from the start where there is none yet.

    `changed` are settings that the plan has anew, which is written down before anything else is done. Of several
    processes the first yields the events.
    """
    try:
        with joined(plan, control) as ranks:
            if ranks.first:
                yield from _gone_on(folder, plan, shelves, control, ranks, changed)
            else:
                _follow(plan, shelves, control, ranks)
    except StopAsked:
        yield from _not_begun(plan, control, checkpoint.newest(folder).update)


def _not_begun(plan: Plan, control: Control, update: int = 0) -> Iterator[Event]:
    """What the first process tells where somebody asked to stop while the processes waited for one another."""
    if not launched.number():
        yield RunStopped(update=update, reason=control.reason, folder=str(plan.folder))


def _gone_on(
    folder: Path, plan: Plan, shelves: Shelves, control: Control, ranks: Ranks, changed: Sequence[str]
) -> Iterator[Event]:
    finished, updates = run_folder.finished(folder), plan.settings.train.updates
    if finished == updates:
        raise RunError(
            f"the run {folder} is complete: {updates} updates",
            fix=f"To go on with it, say for how long: --set train.updates={2 * updates}.",
        )
    run = Run(plan, shelves, control, ranks)
    with alone(folder):
        found = checkpoint.newest(folder)
        refuse_changed(plan, found.settings)
        _refuse_length(folder, found, updates, finished)
        checkpoint.tidy(folder)
        notes = [*_notes(folder, found), *_stretched(plan, found.update, changed)]
        if changed:
            run_folder.write_plan(plan, folder)
        ranks.said(found.update)
        with reachable(folder, control) as why:
            yield from recorded(folder, run.events(found.update, [*notes, why] if why else notes, changed))


def _refuse_length(folder: Path, found: Newest, updates: int, finished: int) -> None:
    if found.update > updates:
        raise RunError(
            f"the run {folder} has done {found.update} updates, and train.updates = {updates} is less",
            fix="Name at least as many; earlier checkpoints of the run can be used as they are.",
        )
    if finished and not found.update:
        raise RunError(
            f"the run {folder} came to its end and left no checkpoint to go on from",
            why="save.every = 0",
            fix="Start a new run with another --name.",
        )


def _notes(folder: Path, found: Newest) -> Iterator[str]:
    """What a person should know of the checkpoints; damaged ones are set aside."""
    for update, why in found.damaged.items():
        place = checkpoint.set_aside(checkpoint.folder_of(folder, update))
        yield (
            f"the checkpoint of update {update} is damaged ({why}); it was set aside as {place}, and training goes on "
            f"from update {found.update}"
        )
    yield from found.notes


def _stretched(plan: Plan, done: int, changed: Sequence[str]) -> Iterator[str]:
    """What another length changes beside the length."""
    settings, length = plan.settings, [one for one in changed if one.startswith("train.updates")]
    if not length or not done:
        return
    then = run_folder.read_plan(plan.folder)
    short = then.settings.train.updates * settings.train.accumulation - then.arithmetic.batches
    if short and done == then.settings.train.updates:
        yield (
            f"update {done} was the last of the old plan and took {count(short, 'batch')} fewer than an update takes; "
            "those are not made up for"
        )
    if settings.optimizer.schedule != "constant":
        rate = learning_rate(settings.optimizer, done + 1, settings.train.updates)
        yield (
            f"optimizer.schedule = '{settings.optimizer.schedule}' runs over the new length from here on: the next "
            f"update's learning rate is {rate:.3g}; a run planned so from its start would have had others before"
        )
