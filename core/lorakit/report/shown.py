"""A run's pictures on the page: previews by prompt and update, and its sheets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lorakit import pages
from lorakit.evidence import Previews, grid
from lorakit.evidence.previews import BITS, Judged
from lorakit.history import History
from lorakit.words import count

SIDE = 320  # pixels of a preview on the page, about 15 kB
SHEET = 1600  # of a sheet
MOST_UPDATES, MOST_PROMPTS, MOST_SHEETS = 12, 8, 4  # so that the page stays well under 5 MB


def gallery(history: History, previews: Previews, recommended: int | None) -> Mapping[str, Any]:
    """Previews as rows of prompts and columns of updates, and what is known of them."""
    every = sorted({one.update for one in previews.judged})
    updates = _chosen(every, recommended)
    rows = _rows(history, previews)
    cells = {
        name: [_picture(found.get(update), name, update) for update in updates]
        for name, found in list(rows.items())[:MOST_PROMPTS]
    }
    return {
        "updates": updates,
        "recommended": recommended,
        "rows": list(cells.items()),
        "left_out": _left_out(len(every) - len(updates), len(rows) - len(cells)),
        "compared": _compared(previews),
        "diversity": [
            (str(one.update), one.prompt, str(one.pictures), f"{one.mean:.1%}") for one in previews.diversity
        ],
    }


def _rows(history: History, previews: Previews) -> Mapping[str, Mapping[int, Judged]]:
    """Previews by prompt and update; a prompt that was drawn with several seeds has a row for each."""
    rows: dict[str, dict[int, Judged]] = {}
    for one in previews.judged:
        number, name = 1, one.prompt
        while one.update in rows.setdefault(name, {}):
            number += 1
            name = f"{one.prompt} (seed {number})"
        rows[name][one.update] = one
    return rows


def _chosen(updates: list[int], recommended: int | None) -> list[int]:
    """The first, the last, and others between them, evenly spaced; the recommended one in the place of its nearest."""
    if len(updates) <= MOST_UPDATES:
        return updates
    step = (len(updates) - 1) / (MOST_UPDATES - 1)
    kept = [updates[round(place * step)] for place in range(MOST_UPDATES)]
    if recommended in updates and recommended not in kept:
        nearest = min(kept[1:-1], key=lambda one: abs(one - recommended))
        kept[kept.index(nearest)] = recommended
    return kept


def _picture(one: Judged | None, prompt: str, update: int) -> Mapping[str, str] | None:
    source = pages.picture(one.path, SIDE) if one is not None else ""
    if one is None or not source:
        return None
    return {"source": source, "alt": f"{prompt}, update {update}", "notes": "; ".join(_notes(one))}


def _notes(one: Judged) -> Iterator[str]:
    if one.fault:
        yield one.fault
    if one.copied:
        yield f"nearly copies {Path(one.copied).name}"


def _compared(previews: Previews) -> str:
    if not previews.judged:
        return ""
    if previews.why_not or not previews.compared:
        return f"Not compared with training pictures: {previews.why_not or 'none could be read'}."
    copies = sum(bool(one.copied) for one in previews.judged)
    of = f"{previews.compared} of " if previews.compared < previews.taught else ""
    return (
        f"Compared with {of}{count(previews.taught, 'training picture')} by a hash of {BITS} bits: "
        f"{count(copies, 'near copy') if copies == 1 else f'{copies} near copies'}."
    )


def _left_out(updates: int, prompts: int) -> str:
    parts = [count(number, noun) for number, noun in ((updates, "update"), (prompts, "prompt")) if number]
    return f"{' and '.join(parts)} more, left out to keep the page small." if parts else ""


def sheets(history: History) -> Iterator[tuple[str, str]]:
    """Sheets as (title, source): every prompt by strength, and those of `lorakit grid`."""
    found = [("Every prompt by strength of the adapter", history.sheet)] if history.sheet else []
    found += [("Checkpoints by strength and guidance", path) for path in grid.sheets(history.folder)[:MOST_SHEETS]]
    for title, path in found:
        if source := pages.picture(path, SHEET):
            yield title, source
