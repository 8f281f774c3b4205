"""A host program that a strict type checker reads: every public name as its user meets it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import assert_type

import lorakit
from lorakit import (
    Control,
    Event,
    Kit,
    Layer,
    LorakitError,
    Part,
    Plan,
    Problem,
    Registry,
    Request,
    Rule,
    Tracker,
    hookimpl,
    never,
    only,
    prefer,
)
from lorakit.errors import ConfigError, NewerError, RunError
from lorakit.events import (
    KINDS,
    VERSION,
    Alarm,
    AlarmKind,
    Asked,
    CheckpointSaved,
    Phase,
    PhaseProgress,
    PreviewDrawn,
    RunFinished,
    RunPaused,
    RunStopped,
    Unknown,
    UpdateFinished,
    Validated,
    Verb,
)


def planned(kit: Kit, folder: Path) -> Plan:
    """A plan from a mapping, and from layers that say where each setting was said."""
    request: Request = kit.request(
        Layer({"family": "qwen", "trigger": "sks"}, "our defaults"), {"data": [{"folder": str(folder)}]}
    )
    plan = kit.plan(request)
    assert_type(plan, Plan)
    assert_type(kit.plan({"family": "qwen"}), Plan)
    problems: Iterable[Problem] = plan.problems
    for problem in problems:
        print(problem.severity, problem.message)
    passes: int = plan.arithmetic.passes
    rate: float = plan.settings.optimizer.learning_rate
    decided: str = plan.choices["lora.rank"].decided_by
    print(passes, rate, decided, plan.folder / "events.jsonl", Plan.from_json(plan.to_json()) == plan)
    estimate = kit.estimate(plan, gpu="4090")
    print(estimate)
    return plan


def trained(kit: Kit, plan: Plan, control: Control) -> RunFinished | RunStopped:
    """The last event of a run."""
    events: Iterator[Event] = kit.train(plan, control, trackers=("tensorboard",))
    for event in events:
        match event:
            case UpdateFinished(update=update, loss=loss):
                assert_type(update, int)
                assert_type(loss, float)
            case Validated():
                gap: float | None = event.gap
                print(gap)
            case PhaseProgress():
                phase: Phase = event.phase
                print(phase, event.done)
            case Alarm():
                kind: AlarmKind = event.kind
                print(kind, event.advice)
            case Asked():
                what: Verb = event.what
                print(what, event.refused)
            case PreviewDrawn() | CheckpointSaved() | RunPaused():
                print(event.update)
            case RunFinished() | RunStopped():
                return event
            case _:
                pass
    raise RuntimeError("a run ends with its last word")


def again(kit: Kit, folder: Path) -> list[Event]:
    """A run that goes on, changed."""
    return list(kit.resume(folder, changes=[Layer({"train": {"updates": 9}}, "the form")]))


def asked(control: Control) -> str:
    """Everything that may be asked of a run."""
    control.pause()
    control.sample(by="the form")
    control.save()
    control.resume()
    control.stop("lunch")
    assert_type(control.stopping, bool)
    assert_type(control.paused, bool)
    assert_type(control.reason, str)
    return control.ask("sample")


def read(line: str) -> Event | None:
    """An event of a journal."""
    try:
        event = Event.from_json(line)
    except (NewerError, ValueError) as error:
        print(error)
        return None
    if isinstance(event, Unknown):
        print(event.line)
    print(event.time, VERSION, sorted(KINDS))
    return event


class Notebook:
    """A tracker."""

    def __init__(self, folder: Path, plan: Plan) -> None:
        self._file = folder / f"{plan.settings.name}.log"

    def __call__(self, event: Event) -> None:
        """Write one event down."""
        with self._file.open("a", encoding="utf-8") as file:
            file.write(event.to_json() + "\n")

    def close(self) -> None:
        """There is nothing to finish."""


def made(folder: Path, plan: Plan) -> Tracker:
    """A tracker, as core sees it."""
    return Notebook(folder, plan)


class House:
    """A plugin."""

    @hookimpl
    def register(self, registry: Registry) -> None:
        """Bring the notebook."""
        registry.tracker(Part(name="notebook", summary="a text file", load=f"{__name__}:Notebook"))

    @hookimpl
    def quantization_rules(self, request: Request) -> list[Rule]:
        """What our cards hold."""
        return [prefer("quantization.name", "none", because="our cards have 80 GB")]

    @hookimpl
    def sampling_rules(self, request: Request) -> list[Rule]:
        """What our eyes see."""
        few = never("sampling.steps", 1, because="one step shows nothing")
        return [few, only("sampling.guidance", 1.0, 4.0, because="we compare at these")]


def main(folder: Path) -> int:
    """All of it."""
    kit = Kit(plugins={"house": House()}, without=["sdxl"])
    try:
        last = trained(kit, planned(kit, folder), Control())
    except ConfigError as error:
        print(error.what, error.where, error.why, error.fix)
        return error.exit_code
    except RunError:
        return 1
    except LorakitError as error:
        print(lorakit.__version__, error)
        return 1
    return 0 if isinstance(last, RunFinished) else 130
