"""What a run's previews tell without any model: whether they show something, copy training pictures, and differ.

All of it is read from the files when it is asked for: it is true of older runs too, and training does nothing for it.
"""

from __future__ import annotations

import statistics
import warnings
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations
from pathlib import Path

from lorakit.audit import alike
from lorakit.audit.data import Told, gather
from lorakit.audit.look import Look, prints
from lorakit.audit.looks import looks
from lorakit.errors import DataError
from lorakit.evidence import grid
from lorakit.history import History
from lorakit.plan import Plan
from lorakit.shown import SIDE, collapsed, entropy, shows_nothing

MOST = 400  # training pictures that previews are compared with, evenly spaced
POOREST = 16  # of them whose entropy is measured
TOGETHER = 16  # pictures of one prompt that are compared with each other
BITS = alike.BITS


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """A preview: `bits` of brightness a pixel, `fault` says what is wrong with it, `copied` whose near copy it is.

    `apart` counts the bits of 128 in which its hash differs from that of the nearest training picture; None where there
    is nothing to compare with.
    """

    update: int
    prompt: str
    path: Path
    bits: float
    fault: str = ""
    apart: int | None = None
    copied: str = ""


@dataclass(frozen=True, slots=True)
class Diversity:
    """How much pictures of one prompt, drawn with several seeds after one update, differ: a mean share of hash bits."""

    update: int
    prompt: str
    pictures: int
    mean: float


@dataclass(frozen=True, slots=True)
class Previews:
    """Every preview that is still there; `compared` of `taught` training pictures were held against them."""

    judged: tuple[Judged, ...] = ()
    diversity: tuple[Diversity, ...] = ()
    compared: int = 0
    taught: int = 0
    why_not: str = ""

    def of(self, update: int) -> tuple[Judged, ...]:
        """Those of one update."""
        return tuple(one for one in self.judged if one.update == update)

    def spread(self, update: int) -> float | None:
        """The mean diversity of one update's prompts; None where none was drawn with several seeds."""
        found = [one.mean for one in self.diversity if one.update == update]
        return statistics.fmean(found) if found else None


@dataclass(frozen=True, slots=True)
class _Shown:
    bits: float
    fault: str
    hash: str
    colours: str


def judged(history: History) -> Previews:
    """What the run's previews show, held against one another and against the pictures that it trained on."""
    drawn = {history.place(one.path): one for one in history.previews if one.strength == 1}
    seen = {path: found for path in drawn if (found := _shown(path)) is not None}
    if not seen:
        return Previews(diversity=tuple(_diversity(history, ())))
    pictures, why_not = taught(history.plan)
    paths = [one.path for one in pictures]
    chosen = spaced(paths)
    known = {path: one for path, one in looks(chosen, work=map).items() if one.hash}
    poorest = [read.bits for path in chosen[:POOREST] if (read := _shown(Path(path))) is not None]
    usual: defaultdict[str, list[float]] = defaultdict(list)
    for path, one in seen.items():
        usual[drawn[path].prompt].append(one.bits)
    made: list[Judged] = []
    for path, one in seen.items():
        prompt = drawn[path].prompt
        fault = one.fault or ("nearly empty" if collapsed(one.bits, usual[prompt], poorest) else "")
        apart, copied = _nearest(one, known)
        made.append(
            Judged(
                update=drawn[path].update,
                prompt=prompt,
                path=path,
                bits=one.bits,
                fault=fault,
                apart=apart,
                copied="" if fault else copied,
            )
        )
    return Previews(tuple(made), tuple(_diversity(history, made)), len(known), len(paths), why_not)


def taught(plan: Plan) -> tuple[list[Told], str]:
    """The pictures that the run trained on, where they still lie there, or why they cannot be had."""
    try:
        pictures = gather(plan.settings.data).pictures
    except DataError as error:
        return [], error.what
    held_out = set(plan.held_out)
    return [one for one in pictures if one.path not in held_out], ""


def spaced(paths: Sequence[str]) -> Sequence[str]:
    """At most as many as are compared, evenly spaced."""
    return paths[:: max(1, -(-len(paths) // MOST))]


def _nearest(seen: _Shown, known: Mapping[str, Look]) -> tuple[int | None, str]:
    """In how many bits the nearest training picture differs, and its path where that makes a near copy of it."""
    colours = bytes.fromhex(seen.colours)
    found = sorted((alike.apart(seen.hash, one.hash), path) for path, one in known.items())
    for apart, path in found:
        if apart <= alike.NEAR and alike.agree(colours, bytes.fromhex(known[path].colours)):
            return apart, path
    return (found[0][0] if found else None), ""


def _diversity(history: History, found: Sequence[Judged]) -> Iterator[Diversity]:
    """Of prompts that were drawn with several seeds: previews that name one more than once, and the grid's."""
    together: defaultdict[tuple[int, str], list[Path]] = defaultdict(list)
    for one in found:
        together[one.update, one.prompt].append(one.path)
    for cell in grid.cells(history.folder):
        if cell.strength == 1:
            together[cell.update, f"{cell.prompt} (grid, guidance {cell.guidance:g})"].append(cell.path)
    for (update, prompt), paths in together.items():
        hashes = [read.hash for path in paths[:TOGETHER] if (read := _shown(path)) is not None]
        pairs = list(combinations(hashes, 2)) if len(paths) > 1 else []
        if pairs:
            mean = statistics.fmean(alike.apart(one, other) for one, other in pairs) / BITS
            yield Diversity(update, prompt, len(hashes), mean)


def _shown(path: Path) -> _Shown | None:
    """What a picture shows; None where it is gone or cannot be read."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return _measured(path, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=8192)
def _measured(path: Path, size: int, changed: int) -> _Shown | None:
    """The same for a file of this size that was changed at this time, so that a report drawn anew reads it once."""
    from PIL import Image

    try:
        with warnings.catch_warnings(), Image.open(path) as opened:
            warnings.simplefilter("ignore")
            picture = opened.convert("RGB")
    except (OSError, ValueError, SyntaxError):  # cut short, or no picture
        return None
    hashed, colours = prints(picture)
    picture.thumbnail((SIDE, SIDE))
    return _Shown(entropy(picture), shows_nothing(picture), hashed, colours)
