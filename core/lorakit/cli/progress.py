"""A person's view of a run: one bar for the phase under way, one line for each that is done."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

from lorakit.cli.quiet import hush, shown
from lorakit.events import (
    Alarm,
    Asked,
    CheckpointSaved,
    DrawingStopped,
    EstimateChecked,
    Event,
    LayerRecovered,
    PassCaptured,
    PhaseFinished,
    PhaseProgress,
    PhaseStarted,
    PictureDrawn,
    PreviewDrawn,
    RecoveryFinished,
    RecoveryStopped,
    RunContinued,
    RunFinished,
    RunPaused,
    RunStarted,
    RunStopped,
    SheetDrawn,
    UpdateFinished,
    Validated,
    Warned,
)
from lorakit.history import REPORT

SMOOTH = 0.9  # how much of the shown loss is history
LINES = 10  # lines about training where there is no terminal


class Progress:
    """A reader of events that draws bars on a terminal and plain lines elsewhere."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(highlight=False)
        self._bars = Bars(
            TextColumn("{task.description:<13}"),
            BarColumn(bar_width=28),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}", markup=False),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
        )
        self._task: TaskID | None = None
        self._total = 0
        self._loss: float | None = None
        self._first: tuple[float, int] | None = None
        self._raised: Counter[str] = Counter()

    def __call__(self, event: Event) -> None:
        """Show one event."""
        match event:
            case RunStarted():
                went_on = f", going on after update {event.resumed_from}" if event.resumed_from else ""
                self._say(f"run          {event.folder} on {event.device}{went_on}")
                for change in event.changed:
                    self._say(f"changed      {change}")
                self._bars.start()
            case PhaseStarted():
                self._start(event)
            case PhaseProgress():
                self._advance(event.done, event.note)
            case UpdateFinished():
                self._update(event)
            case PhaseFinished():
                self._finish(event)
            case PassCaptured():
                self._say(f"  captured   {event.form}, as CUDA graph {event.graphs}, {duration(event.seconds)}")
            case EstimateChecked():
                self._compare(event)
            case CheckpointSaved():
                self._say(f"  checkpoint {event.lora}")
            case Validated():
                self._say(f"  validation {measured(event)}")
            case PreviewDrawn():
                self._say(f"  preview    {event.path}")
            case Warned():
                self._say(f"warning: {event.message}", "yellow")
            case Alarm():
                self._alarm(event)
            case SheetDrawn():
                strengths = ", ".join(f"{one:g}" for one in event.strengths)
                self._say(f"pictures     {event.path} (strength {strengths})")
            case Asked():
                self._say(f"asked        {event.what}, by {event.by}" + (f": {event.refused}" if event.refused else ""))
            case RunPaused():
                self._say(f"paused       after update {event.update}", "yellow")
            case RunContinued():
                self._say(f"goes on      after {duration(event.seconds)}")
            case RunStopped() | RunFinished():
                self._end(event)
            case PictureDrawn():
                if not event.kept:
                    self._say(f"  picture    {event.path} (strength {event.strength:g}, seed {event.seed})")
            case DrawingStopped():
                self.close()
                self._say(f"stopped      {event.reason}, after {event.drawn} of {event.total} pictures")
            case LayerRecovered() | RecoveryStopped() | RecoveryFinished():
                self._recovery(event)
            case _:
                pass

    def _end(self, event: RunStopped | RunFinished) -> None:
        self.close()
        self._alarms()
        if isinstance(event, RunStopped):
            self._say(f"stopped      {event.reason}, after update {event.update}")
            self._say(f"go on with   lorakit resume {event.folder}")
            return
        self._say(f"proof        {event.proof}", "green")
        self._say(f"file         {event.lora}", "green")
        if event.workflow:
            self._say(f"workflow     {event.workflow}")
        if (page := Path(event.folder) / REPORT).is_file():
            self._say(f"report       {page} (`lorakit pick {event.folder}` recommends a checkpoint)")
        self._say(f"done         {event.update} updates in {duration(event.seconds)}")

    def _recovery(self, event: LayerRecovered | RecoveryStopped | RecoveryFinished) -> None:
        match event:
            case LayerRecovered():
                self._say(f"  {event.name:<50} error {event.before:8.2%} -> {event.after:8.2%}")
            case RecoveryStopped():
                self.close()
                then = f" and update {event.updates} of all together" if event.updates else ""
                self._say(f"stopped      {event.reason}, after block {event.blocks}{then}")
                self._say("go on with   the same command")
            case RecoveryFinished():
                self.close()
                self._say(f"output error {event.before:.2%} -> {event.after:.2%}", "green")
                self._say(f"file         {event.path}", "green")
                self._say(f"errors       {event.report}")
                self._say(f"done         in {duration(event.seconds)}")

    def _alarm(self, event: Alarm) -> None:
        """The first alarm of a kind; later ones are counted, and what ends the run is told by its error."""
        self._raised[event.kind] += 1
        if self._raised[event.kind] > 1 or event.kind in ("not finite", "out of memory"):
            return
        self._say(f"alarm        {event.message}", "yellow")
        for number, step in enumerate(event.advice, 1):
            self._say(f"             {number}. {step}")

    def _alarms(self) -> None:
        more = [f"{kind} {count} times" for kind, count in self._raised.items() if count > 1]
        if more:
            self._say(f"alarms       {', '.join(more)}", "yellow")

    def _compare(self, event: EstimateChecked) -> None:
        """What was estimated beside what was measured."""
        from lorakit.estimate.words import compared

        for line in compared(event):
            self._say(f"  {line}")

    def close(self) -> None:
        """Put the terminal back as it was."""
        self._bars.stop()

    def _say(self, line: str, style: str | None = None) -> None:
        self.console.print(shown(line), style=style, markup=False, soft_wrap=True)

    def _start(self, event: PhaseStarted) -> None:
        if event.phase != "index":  # which waits for no model library
            hush()
        if self._task is not None:
            self._bars.remove_task(self._task)
        self._total, self._first, self._loss = event.total, None, None
        self._task = self._bars.add_task(event.phase, total=event.total or None, note="")

    def _advance(self, done: int, note: str) -> None:
        if self._task is not None:
            self._bars.update(self._task, completed=done, note=shown(note[:40]))

    def _update(self, event: UpdateFinished) -> None:
        self._loss = event.loss if self._loss is None else SMOOTH * self._loss + (1 - SMOOTH) * event.loss
        note = f"loss {self._loss:.4f}  {event.seconds:.2f} s/update{self._left(event.update)}"
        self._advance(event.update, note)
        if not self.console.is_terminal and event.update % max(1, self._total // LINES) == 0:
            self._say(f"  update {event.update}/{self._total}  epoch {event.epoch:.2f}  {note}")

    def _left(self, update: int) -> str:
        """Time left at the pace since the first update, pictures and checkpoints included; empty at first."""
        now = time.perf_counter()
        if self._first is None:
            self._first = (now, update)
            return ""
        began, first = self._first
        return f"  {duration((now - began) / (update - first) * (self._total - update))} left"

    def _finish(self, event: PhaseFinished) -> None:
        if self._task is not None:
            self._bars.remove_task(self._task)
            self._task = None
        note = f"  {event.note}" if event.note else ""
        self._say(f"{event.phase:<13}{duration(event.seconds)}{note}")


def measured(event: Validated) -> str:
    """What was measured, in a line; what there was nothing to measure on is left out."""
    error = f" ± {event.loss_error:.4f}" if event.loss_error is not None else ""
    found = [
        ("held out", None if event.loss is None else f"{event.loss:.4f}{error}"),
        ("training", None if event.train_loss is None else f"{event.train_loss:.4f}"),
        ("trigger", None if event.trigger is None else f"{event.trigger:+.4f}"),
        ("drift", None if event.drift is None else f"{event.drift:.2%}"),
        ("norm", None if event.norm is None else f"{event.norm:.2%}"),
    ]
    return "  ".join(f"{name} {value}" for name, value in found if value is not None)


def duration(seconds: float) -> str:
    """Seconds as a person says them."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"
