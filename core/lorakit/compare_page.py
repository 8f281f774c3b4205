"""Runs that were compared, as one HTML page that needs nothing else: pictures and curves inlined, the rest escaped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorakit import pages
from lorakit.compare import Side, rows
from lorakit.history import History, smoothed
from lorakit.words import count

if TYPE_CHECKING:
    from lorakit.events import Validated

WIDTH, HEIGHT, EDGE = 340.0, 120.0, 6.0  # of a chart, in its own units
POINTS = 400  # of a curve


@dataclass(frozen=True, slots=True)
class Curve:
    """A line of a chart, as SVG points, and the range that it spans."""

    points: str
    first: str
    last: str
    highest: str
    lowest: str
    bars: tuple[tuple[float, float, float], ...] = ()
    """(x, top, bottom) of standard errors."""


def write(sides: Sequence[Side], histories: Sequence[History], file: Path) -> None:
    """Write the page whole, or say why not."""
    pages.write(pages.rendered("lorakit", "compare_page.html", facts(sides, histories)), file, "--output")


def facts(sides: Sequence[Side], histories: Sequence[History]) -> dict[str, Any]:
    """What the template is filled with."""
    prompts = dict.fromkeys(prompt for one in histories for prompt in one.last_previews())
    return {
        "titles": [side.title for side in sides],
        "settings": rows(sides),
        "runs": [_run(side, history) for side, history in zip(sides, histories, strict=True)],
        "prompts": [
            (prompt, [pages.picture(history.last_previews().get(prompt)) for history in histories])
            for prompt in prompts
        ],
        "sheets": [pages.picture(history.sheet) for history in histories],
        "width": WIDTH,
        "height": HEIGHT,
    }


def _run(side: Side, history: History) -> dict[str, Any]:
    losses = smoothed(history.updates.column("loss"))
    held = [one for one in history.validations if one.loss is not None]
    drift = next((one.drift for one in reversed(history.validations) if one.drift is not None), None)
    return {
        "title": side.title,
        "figures": [
            ("updates", str(len(history.updates))),
            ("time of an update", _seconds(history.seconds_per_update)),
            ("peak memory", f"{history.memory / 1e9:.2f} GB" if history.memory else "not known"),
            ("the file", _size(history.file)),
            ("held-out loss", f"{held[0].loss:.4f} to {held[-1].loss:.4f}" if held else "not measured"),
            ("drift", "not measured" if drift is None else f"{drift:.1%}"),
            ("proof", history.end.proof if history.end else "not finished"),
        ],
        "loss": curve(history.updates.column("update"), losses),
        "held": _held(held),
        "counted": count(len(held), "measurement"),
    }


def _held(held: Sequence[Validated]) -> Curve | None:
    told = [(one.update, one.loss, one.loss_error or 0.0) for one in held if one.loss is not None]
    return curve(*zip(*told, strict=True)) if told else None


def curve(at: Sequence[float], values: Sequence[float], errors: Sequence[float] = ()) -> Curve | None:
    """Values over updates as a line that fills the chart; None where there are not two of them."""
    if len(values) < 2:
        return None
    step = -(-len(values) // POINTS)
    kept = sorted({*range(0, len(values), step), len(values) - 1})
    spread: Sequence[float] = errors or [0.0] * len(values)
    low: float = min(values[n] - spread[n] for n in kept)
    high: float = max(values[n] + spread[n] for n in kept)

    def across(number: float) -> float:
        return EDGE + (number - at[0]) / (at[-1] - at[0] or 1.0) * (WIDTH - 2 * EDGE)

    def down(value: float) -> float:
        return EDGE + (high - value) / (high - low or 1.0) * (HEIGHT - 2 * EDGE)

    bars = ((across(at[n]), down(values[n] + spread[n]), down(values[n] - spread[n])) for n in kept if errors)
    return Curve(
        points=" ".join(f"{across(at[n]):.1f},{down(values[n]):.1f}" for n in kept),
        first=f"{at[0]:g}",
        last=f"{at[-1]:g}",
        highest=f"{high:.3g}",
        lowest=f"{low:.3g}",
        bars=tuple(_rounded(bars)),
    )


def _rounded(bars: Iterable[tuple[float, float, float]]) -> Iterable[tuple[float, float, float]]:
    return ((round(x, 1), round(top, 1), round(bottom, 1)) for x, top, bottom in bars)


def _seconds(seconds: float | None) -> str:
    if seconds is None:
        return "not known"
    return f"{seconds:.2f} s" if seconds >= 0.1 else f"{1000 * seconds:.0f} ms"


def _size(file: Path) -> str:
    return f"{file.stat().st_size / 1e6:.2f} MB" if file.is_file() else "not there"
