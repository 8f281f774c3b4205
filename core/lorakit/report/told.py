"""What a run's folder says, in the words of the page: summary, choice, alarms, data, plan."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lorakit.events import Alarm, PhaseFinished, PhaseStarted, RunStarted, RunStopped, Validated, Warned
from lorakit.evidence import Previews, Recommendation, words
from lorakit.explain import arithmetic
from lorakit.history import History
from lorakit.plan import DERIVED, Plan
from lorakit.words import count

Row = tuple[str, str]
NAMES = 13  # letters of a line of the run's arithmetic that name it


def status(history: History) -> str:
    """Whether the run is at its end, and when that was last true."""
    updates = history.plan.settings.train.updates
    last = history.events[-1].time if history.events else 0.0
    when = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(last))
    if history.finished:
        return f"Finished on {when} after {count(updates, 'update')}."
    done = history.updates[-1].update if history.updates else 0
    ended = history.events and isinstance(history.events[-1], RunStopped)
    return f"{'Stopped' if ended else 'Under way'} on {when}: {done} of {count(updates, 'update')} done."


def summary(history: History) -> Iterator[Row]:
    """The figures that are looked at first."""
    settings, starts = history.plan.settings, history.told(RunStarted)
    base = "" if settings.quantization.name == "none" else f", in {settings.quantization.name}"
    yield "Model", f"{settings.family} {settings.variant}{base}"
    yield "Trigger", settings.trigger or "none"
    yield "Adapter", f"rank {settings.lora.rank}, alpha {settings.lora.alpha:g}"
    if history.updates:
        last = history.updates[-1]
        yield "Updates", f"{last.update} of {settings.train.updates}, {last.epoch:.1f} epochs, {last.passes} passes"
    if history.seconds_per_update is not None:
        yield "Time of an update", f"{_seconds(history.seconds_per_update)} (median)"
    if history.end:
        yield "Time of the run", _seconds(history.end.seconds)
    if history.memory:
        yield "Peak memory", f"{history.memory / 1e9:.2f} GB"
    if share := validation_share(history):
        yield "Validation", share
    if starts:
        yield "Device", starts[-1].device
        yield "Versions", ", ".join(f"{name} {version}" for name, version in starts[-1].versions)
    if history.file.is_file():
        yield "File", f"{history.file.name}, {history.file.stat().st_size / 1e6:.1f} MB"


def validation_share(history: History) -> str:
    """How much of training's time validation took, previews and checkpoints included; empty where there was none."""
    seconds = sum(one.seconds for one in history.told(Validated))
    whole, last = 0.0, None
    for event in history.events:
        if isinstance(event, (RunStarted, PhaseStarted)):
            last = event.time if isinstance(event, PhaseStarted) and event.phase == "train" else None
        elif last is not None:
            whole, last = whole + event.time - last, event.time
            last = None if isinstance(event, PhaseFinished) else last
    if not seconds or whole <= 0:
        return ""
    return f"{count(len(history.validations), 'time')}, {min(1.0, seconds / whole):.1%} of the time of training"


def choice(history: History, made: Recommendation, previews: Previews) -> Mapping[str, Any]:
    """What is recommended, and why, and how sure that is."""
    return {
        "ranked": [
            {
                "update": one.candidate.update,
                "file": str(_below(history.folder, one.candidate.file)),
                "reasons": words.reasons(one, made),
                "within": one.within,
            }
            for one in made.ranked[: words.TOP]
        ],
        "order": words.order(made) if made.band else "",
        "course": words.course(made),
        "dropped": [(one.candidate.update, one.why) for one in made.dropped],
        "weak": words.weak(history, made, previews),
    }


def alarms(history: History) -> Iterator[Mapping[str, Any]]:
    """Alarms, one for each kind: the first in full, and how many there were."""
    found = history.told(Alarm)
    counts = Counter(one.kind for one in found)
    for kind, number in counts.items():
        first = next(one for one in found if one.kind == kind)
        yield {"kind": kind, "times": count(number, "time"), "message": first.message, "advice": first.advice}


def warnings(history: History) -> Iterator[str]:
    """What the plan and the run warned of, each once."""
    told = [one.message for one in history.plan.problems if one.severity == "warning"]
    yield from dict.fromkeys([*told, *(one.message for one in history.told(Warned))])


def data(plan: Plan) -> Mapping[str, Any]:
    """Folders, shapes and the pictures held out."""
    return {
        "folders": [
            (one.folder or one.list or "", one.trigger or "none", _repeats(one.repeats), str(one.resolution))
            for one in plan.settings.data
        ],
        "sums": [(line[:NAMES].strip(), line[NAMES:]) for line in arithmetic(plan)],
        "held_out": [Path(path).name for path in plan.held_out],
    }


def _repeats(repeats: int | None) -> str:
    return "by folder name" if repeats is None else str(repeats)


def plan(made: Plan) -> Iterator[tuple[str, str, Sequence[Mapping[str, str]]]]:
    """Every setting by section, with who decided it and why."""
    sections: dict[str, list[Mapping[str, str]]] = {}
    for name, chosen in made.choices.items():
        section, dot, _ = name.partition(".")
        because = "" if chosen.because == "default" or chosen.because.startswith("asked for") else chosen.because
        who = "arithmetic" if chosen.because == DERIVED else chosen.decided_by
        row = {"name": name, "value": _value(chosen.value), "who": who, "because": because}
        sections.setdefault(section if dot else "the run", []).append(row)
    yield from ((section, count(len(rows), "setting"), rows) for section, rows in sections.items())


def phases(history: History) -> Iterator[tuple[str, str, str]]:
    """What was done, how long it took, and what came of it."""
    for one in history.told(PhaseFinished):
        yield one.phase, _seconds(one.seconds), one.note


def _value(value: object) -> str:
    if value is None:
        return "none"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _below(folder: Path, file: Path) -> Path:
    return file.relative_to(folder) if file.is_relative_to(folder) else file


def _seconds(seconds: float) -> str:
    if seconds < 0.1:
        return f"{1000 * seconds:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"
