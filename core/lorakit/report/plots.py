"""A run's curves as numbers: what is drawn, said in words for those who cannot see it, and listed in a table."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from lorakit.events import Validated
from lorakit.evidence import Likeness
from lorakit.evidence.likeness import Mean
from lorakit.history import History, smoothed
from lorakit.update_table import UpdateTable

POINTS = 600  # of a curve that are drawn
ROWS = 40  # of a table beside it
Number = float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A curve; `errors` are half widths of the band around it."""

    name: str
    values: Sequence[Number]
    errors: Sequence[Number] = ()
    kind: Literal["line", "faint", "points"] = "line"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plot:
    """Curves over updates; `mark` is the update that is recommended, `note` says how to read them."""

    name: str
    title: str
    at: Sequence[int]
    lines: Sequence[Line]
    note: str = ""
    unit: str = ""
    mark: int | None = None


def plots(history: History, mark: int | None, judged: Sequence[Likeness] = ()) -> Iterator[Plot]:
    """Every curve that the run has at least two points of."""
    found = (*_measured(history.validations, mark), *_judged(judged, mark), *_trained(history.updates, mark))
    for plot in found:
        lines = [line for line in plot.lines if sum(value is not None for value in line.values) > 1]
        if lines:
            yield replace(plot, lines=lines)


def _trained(updates: UpdateTable, mark: int | None) -> Iterator[Plot]:
    kept = _spread(len(updates), POINTS)
    at = [updates[place].update for place in kept]

    def values(of: Sequence[float]) -> list[Number]:
        return [_finite(of[place]) for place in kept]

    losses = updates.column("loss")
    soft = smoothed([loss for loss in losses if math.isfinite(loss)])
    whole = len(soft) == len(losses)
    yield Plot(
        name="loss",
        title="Training loss",
        at=at,
        mark=mark,
        note="Each update is at other noise levels, so it jumps; it is no measure of quality.",
        lines=[
            Line(name="raw", values=values(losses), kind="faint"),
            Line(name="smoothed", values=values(soft) if whole else []),
        ],
    )
    rates, norms = updates.column("learning_rate"), updates.column("grad_norm")
    yield Plot(name="rate", title="Learning rate", at=at, mark=mark, lines=[Line(name="rate", values=values(rates))])
    yield Plot(name="norm", title="Gradient norm", at=at, mark=mark, lines=[Line(name="norm", values=values(norms))])
    seconds = updates.column("seconds")
    yield Plot(
        name="speed",
        title="Time of an update",
        at=at,
        mark=mark,
        unit="s",
        lines=[Line(name="seconds", values=values(seconds))],
    )
    memory = [one / 1e9 for one in updates.column("memory")]
    yield Plot(
        name="memory",
        title="Peak memory",
        at=at,
        mark=mark,
        unit="GB",
        lines=[Line(name="GB", values=values(memory) if any(memory) else [])],
    )


def _measured(validations: Sequence[Validated], mark: int | None) -> Iterator[Plot]:
    every = sorted(validations, key=lambda one: one.update)
    told = [one for one in every if one.update]  # the untaught base stands apart: beside it all others look alike
    at = [one.update for one in told]
    base = next((one for one in every if not one.update), None)

    def line(label: str, value: str, error: str = "", share: float = 1.0) -> Line:
        return Line(
            name=label,
            values=[_times(getattr(one, value), share) for one in told],
            errors=[_times(getattr(one, error), share) for one in told] if error else (),
        )

    yield Plot(
        name="held",
        title="Validation",
        at=at,
        mark=mark,
        note="Bands are standard errors over pictures. A held-out loss that rises while the other falls is learning "
        f"by heart.{_before(base, 'held-out loss', 'loss')}",
        lines=[
            line("held-out loss", "loss", "loss_error"),
            line("same, training pictures", "train_loss", "train_error"),
        ],
    )
    yield Plot(
        name="trigger",
        title="Trigger sensitivity",
        at=at,
        mark=mark,
        note="How much larger the loss is without the trigger word; the band is its standard error."
        f"{_before(base, 'trigger sensitivity', 'trigger')}",
        lines=[line("trigger sensitivity", "trigger", "trigger_error")],
    )
    yield Plot(
        name="drift",
        title="Drift from the base",
        at=at,
        mark=mark,
        unit="%",
        note="How far answers to unrelated prompts are from the base's.",
        lines=[line("drift", "drift", share=100)],
    )
    yield Plot(
        name="levels",
        title="Held-out loss by noise level",
        at=at,
        mark=mark,
        note="High levels are composition, low ones texture.",
        lines=list(_levels(told)),
    )
    yield Plot(
        name="size",
        title="Size of the adapter",
        at=at,
        mark=mark,
        unit="%",
        note="Its length over that of the weight it stands on.",
        lines=[line("median layer", "norm", share=100), line("largest layer", "largest_norm", share=100)],
    )


def _judged(judged: Sequence[Likeness], mark: int | None) -> Iterator[Plot]:
    at = sorted({update for told in judged for update in told.updates})
    found = [(told.judge.title, [told.of(update) for update in at]) for told in judged]
    note = "Mean cosines of previews; bands are standard errors over them. They decide nothing."
    yield Plot(
        name="image-similarity",
        title="Image similarity",
        at=at,
        mark=mark,
        note=f"To the training pictures. {note} They do not tell learning from copying.",
        lines=[_means(title, [one.image for one in every]) for title, every in found],
    )
    yield Plot(
        name="text-similarity",
        title="Text similarity",
        at=at,
        mark=mark,
        note=f"Of previews to their prompts. {note}",
        lines=[_means(title, [one.text for one in every]) for title, every in found],
    )


def _means(name: str, means: Sequence[Mean | None]) -> Line:
    return Line(
        name=name,
        values=[one.value if one else None for one in means],
        errors=[one.error if one else None for one in means],
    )


def _before(base: Validated | None, label: str, value: str) -> str:
    found = getattr(base, value) if base is not None else None
    return "" if found is None else f" Before the first update, {label} {_number(found)}."


def _levels(told: Sequence[Validated]) -> Iterator[Line]:
    for place, level in enumerate(told[-1].levels if told else ()):
        values = [_finite(one.loss_by_level[place]) if place < len(one.loss_by_level) else None for one in told]
        yield Line(name=f"level {level:g}", values=values)


def described(plot: Plot) -> Mapping[str, Any]:
    """A plot for the template: the drawing's numbers, a sentence, and a table of some of them."""
    return {
        "name": plot.name,
        "title": plot.title,
        "unit": plot.unit,
        "note": plot.note,
        "says": " ".join(_sentence(plot, line) for line in plot.lines),
        "columns": [f"{line.name}{f' ({plot.unit})' if plot.unit else ''}" for line in plot.lines],
        "rows": list(_rows(plot)),
        "left_out": len(plot.at) > ROWS,
        "data": {
            "at": list(plot.at),
            "mark": plot.mark,
            "unit": plot.unit,
            "lines": [
                {"name": line.name, "kind": line.kind, "values": list(line.values), "errors": list(line.errors)}
                for line in plot.lines
            ],
        },
    }


def _sentence(plot: Plot, line: Line) -> str:
    known = [(at, value) for at, value in zip(plot.at, line.values, strict=True) if value is not None]
    (first, begun), (last, ended) = known[0], known[-1]
    at, least = min(known, key=lambda one: one[1])
    unit = f" {plot.unit}" if plot.unit else ""
    return (
        f"{line.name.capitalize()}: {_number(begun)}{unit} at update {first}, {_number(ended)}{unit} at update {last}, "
        f"lowest {_number(least)}{unit} at update {at}."
    )


def _rows(plot: Plot) -> Iterator[tuple[str, Sequence[str]]]:
    for place in _spread(len(plot.at), ROWS):
        yield str(plot.at[place]), [_cell(line, place) for line in plot.lines]


def _cell(line: Line, place: int) -> str:
    value = line.values[place]
    error = line.errors[place] if line.errors else None
    if value is None:
        return "none"
    return f"{_number(value)} ± {_number(error)}" if error is not None else _number(value)


def _number(value: float) -> str:
    return f"{value:.4g}"


def _spread(length: int, most: int) -> list[int]:
    """Places of a list, evenly spaced, the first and the last among them."""
    step = max(1, -(-length // most))
    return sorted({*range(0, length, step), *([length - 1] if length else [])})


def _times(value: float | None, share: float) -> Number:
    return None if value is None else _finite(value * share)


def _finite(value: float) -> Number:
    return value if math.isfinite(value) else None
