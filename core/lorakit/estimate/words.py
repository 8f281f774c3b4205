"""An estimate in words: lines of at most 80 columns, and a table for programs."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from lorakit.estimate.figures import Estimate, Memory
from lorakit.estimate.rates import SLACK
from lorakit.plan import Plan

if TYPE_CHECKING:  # the plan shall not wait for the events of runs
    from lorakit.events import EstimateChecked

WIDTH = 78  # of a line, so that it fits 80 columns behind a comment's mark
LABEL = 13
ROWS = (
    ("base", "base"),
    ("adapter, optimizer", "adapter"),
    ("activations", "activations"),
    ("temporary", "workspace"),
    ("context", "context"),
    ("training", "training"),
    ("encoding text", "text"),
    ("encoding pictures", "images"),
    ("previews", "previews"),
    ("peak", "peak"),
)
"""Rows of the memory table: their names, and what of `Memory` they show."""


def table(made: Estimate) -> dict[str, Any]:
    """The estimate for programs: bytes, seconds, FLOPs."""
    found = asdict(made)
    for row, one in zip(found["memory"], made.memory, strict=True):
        row |= {"training": one.training, "peak": one.peak, "fits": made.fits(one)}
    if made.duration:
        found["duration"]["whole"] = made.duration.whole
    return found


def lines(plan: Plan, made: Estimate) -> Iterator[str]:
    """What a person is told."""
    yield from _memory(made)
    yield from _time(plan, made)
    yield from _between(plan, made)
    yield from _line("the adapter", f"{_millions(made.trained)} parameters; a file of {size(made.file)}")
    fetched = f"{size(made.disk.download)} to download, " if made.disk.download else ""
    kept = f"{fetched}{size(made.disk.cache)} cache, {size(made.disk.checkpoints)} checkpoints"
    yield from _line("on disk", kept)
    if made.device_memory is not None or not made.device:
        each = " for each process" if plan.settings.train.gpus > 1 else ""
        why = "for the text encoder is read there on its way to the GPU"
        yield from _line("host memory", f"{size(made.host)}{each}, {why}")


def _between(plan: Plan, made: Estimate) -> Iterator[str]:
    """What GPUs tell one another: one sum of the adapter's gradient, by a ring, and a base that is sharded."""
    gpus, chosen = plan.settings.train.gpus, made.chosen
    if gpus == 1:
        return
    base = "each has the whole base"
    if plan.settings.train.sharding == "sharded":
        bytes_ = f"; {size(chosen.gathered)} come to each in a batch" if chosen else ""
        base = f"each has 1/{gpus} of every block{bytes_}"
    sent = 2 * (gpus - 1) / gpus * 4 * made.trained
    yield from _line("between GPUs", f"{base}; an update sums {size(4 * made.trained)}, {size(sent)} sent by each")


def _cards(plan: Plan, made: Estimate) -> str:
    gpus = plan.settings.train.gpus
    return made.device if gpus == 1 else f"{gpus} x {made.device}"


def _of_all(plan: Plan) -> str:
    return "" if plan.settings.train.gpus == 1 else " of all GPUs"


def _memory(made: Estimate) -> Iterator[str]:
    """The table of memory by part, a column for each quantizer; the plan's own is marked."""
    if not made.memory:
        return
    unit, name = (1e9, "GB") if max(one.peak for one in made.memory) >= 1e9 else (1e6, "MB")
    where = "memory" if made.device and made.device_memory is None else "GPU memory"
    heads = [f"{one.quantization}{'*' if one.quantization == made.quantization else ''}" for one in made.memory]
    yield _row(f"{where} in {name}", heads)
    for label, part in ROWS:
        values = [getattr(one, part) for one in made.memory]
        if any(values):
            yield _row(f"  {label}", [f"{value / unit:.1f}" for value in values])
    if made.device_memory is not None:
        yield _row(f"  fits {made.device_memory / 1e9:g} GB", [_yes(made, one) for one in made.memory])


def _row(label: str, cells: list[str]) -> str:
    return f"{label:<19}" + "".join(f" {cell:>10}" for cell in cells)


def _yes(made: Estimate, one: Memory) -> str:
    return "yes" if made.fits(one) else "no"


def _time(plan: Plan, made: Estimate) -> Iterator[str]:
    tokens = made.tokens
    seen = f" + {tokens.reference:.0f} of references" if tokens.reference else ""
    yield from _line(
        "computing",
        f"{flops(made.flops)} an update; a picture has {tokens.image:.0f} tokens{seen} + {tokens.text:.0f} of text",
    )
    time = made.duration
    if time is None:
        if plan.arithmetic.images:
            yield from _line("time", "not known: name a --gpu, or measure this machine with `lorakit calibrate`")
        return
    yield from _line(
        "an update",
        f"at least {duration(time.update_floor)}, expected {duration(time.update)}, on {_cards(plan, made)}",
    )
    previews = f", and {duration(time.previews)} of previews" if time.previews else ""
    yield from _line("the run", f"at least {duration(time.floor)}, expected {duration(time.expected)}{previews}")
    if made.price is not None:
        least, most = (made.price * seconds / 3600 for seconds in (time.floor, time.whole))
        yield from _line(
            "price", f"at least {least:.2f}, expected {most:.2f}, at {made.price:g} an hour{_of_all(plan)}"
        )
    expected = "sums products, attention, bytes moved and operations"
    if not made.measured:
        expected += f", times {SLACK:g} as three published runs took"
    floor = f"at least: FLOPs at {made.ceiling / 1e12:.3g} TFLOP/s, the most that the device sustains"
    yield from _line("how", f"{floor} ({made.source}); expected {expected}")


def _line(label: str, text: str) -> Iterator[str]:
    """A labelled line, wrapped below itself where it is long."""
    for number, part in enumerate(textwrap.wrap(text, WIDTH - LABEL, break_long_words=False, break_on_hyphens=False)):
        yield f"{'' if number else label:<{LABEL}}{part}"


def compared(event: EstimateChecked) -> Iterator[str]:
    """The first updates beside what was expected of them."""
    measured = f"an update takes {duration(event.seconds)}"
    if event.expected_seconds is None:
        yield f"{measured}; `lorakit calibrate` lets plans tell so before"
    else:
        off = event.seconds / event.expected_seconds - 1
        yield f"{measured}, {duration(event.expected_seconds)} were expected ({off:+.0%}; {event.source})"
    if event.expected_memory and event.memory:
        off = event.memory / event.expected_memory - 1
        yield f"memory peaks at {size(event.memory)}, {size(event.expected_memory)} were expected ({off:+.0%})"


def size(number: float) -> str:
    """Bytes as a person says them."""
    for unit, name in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB")):
        if number >= unit:
            return f"{number / unit:.3g} {name}"
    return f"{number / 1e3:.3g} kB"


def flops(number: float) -> str:
    """FLOPs as a person says them."""
    for unit, name in ((1e15, "PFLOP"), (1e12, "TFLOP")):
        if number >= unit:
            return f"{number / unit:.3g} {name}"
    return f"{number / 1e9:.3g} GFLOP"


def duration(seconds: float) -> str:
    """Seconds as a person says them, to the digits that an estimate has."""
    if seconds < 0.1:
        return f"{seconds * 1000:.2g} ms"
    if seconds < 90:
        return f"{seconds:.2g} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.3g} h"


def _millions(number: int) -> str:
    return f"{number / 1e6:.1f} million" if number >= 1e6 else f"{number:,}"
