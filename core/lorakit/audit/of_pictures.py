"""What is odd about picture files: broken, small, blurred, alike, or cut far."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache

from lorakit.audit import alike
from lorakit.audit.data import Data, Told
from lorakit.audit.findings import Finding
from lorakit.audit.look import Look
from lorakit.buckets import LONGEST, Fit, Shape, fit
from lorakit.dataset import MUCH, Sizing
from lorakit.words import count, some

BLURRED = 0.33
"""Detail at the taught size, over that at a half or a quarter of it, below which a picture is called enlarged.

A picture that was enlarged twice has 0.2 to 0.3, a sharp one 0.4 to 1.3 (docs/check.md has the measurement)."""

TELLING = 3.0  # detail below which a picture is too smooth to tell, of 255
NAMED = 10  # pictures that a finding of likeness names


def fitted(told: Told, seen: Look, sizing: Sizing) -> Fit | None:
    """How the picture is brought to its bucket; None where it is not readable or too small."""
    if seen.problem or min(seen.width, seen.height) < sizing.side_multiple:
        return None
    return fit(Shape(seen.width, seen.height), told.table.resolution, sizing.side_multiple)


def of_files(data: Data, looks: Mapping[str, Look]) -> Iterator[Finding]:
    """What is broken, and what was named wrongly."""
    for path in dict.fromkeys([*(told.path for told in data.pictures), *data.references, *data.strays]):
        seen = looks[path]
        if seen.problem:
            yield Finding("truncated" if seen.truncated else "unreadable", path, seen.problem)
    resolve = lru_cache(maxsize=64)(os.path.realpath)
    counts = Counter(_real(told.path, resolve) for told in data.pictures)
    for told in data.pictures if len(counts) < len(data.pictures) else ():
        if counts[_real(told.path, resolve)] > 1:
            yield Finding("twice", told.path, "another name leads to this file")
    for path in data.strays:
        yield Finding("stray", path, "no picture bears its name")
    for path in data.passed_over:
        yield Finding("folder", path, "not read, because the folder above holds pictures itself")


def of_sizes(told: Told, seen: Look, brought: Fit | None, sizing: Sizing) -> Iterator[Finding]:
    """What is too small, too long, or blurred."""
    size, side = Shape(seen.width, seen.height), told.table.resolution
    if brought is None:
        if not seen.problem:
            yield Finding("patch", told.path, f"{size}, where a patch has {sizing.side_multiple} pixels a side")
        return
    area = size.width * size.height
    if area < (side / 2) ** 2:
        yield Finding("tiny", told.path, f"{size}, where {side}x{side} is trained")
    elif area < (side - sizing.side_multiple) ** 2:
        yield Finding("small", told.path, f"{size}, taught at its own size")
    if max(size.width, size.height) > LONGEST * min(size.width, size.height):
        yield Finding("extreme", told.path, f"{size}: {brought.cropped:.0%} is cut away")
    elif brought.cropped > MUCH:
        yield Finding("cropped", told.path, f"{brought.cropped:.0%} is cut away to fit {brought.shape}")
    ratio = sharpness(seen, brought)
    if ratio is not None and ratio < BLURRED:
        shown = Shape(brought.shape.width // 2, brought.shape.height // 2)
        yield Finding("upscaled", told.path, f"no sharper at {brought.shape} than {shown} enlarged ({ratio:.2f})")


def of_content(told: Told, seen: Look) -> Iterator[Finding]:
    """What is transparent, grey, or of one colour."""
    if seen.problem:
        return
    if seen.flat:
        yield Finding("flat", told.path, "every pixel has nearly the same colour")
    elif seen.grey:
        yield Finding("grey", told.path, "red, green and blue are equal")
    if seen.transparent:
        yield Finding("transparent", told.path, "put over white")


def of_references(data: Data, sizing: Sizing) -> Iterator[Finding]:
    """Pictures with too many references, or without one where the variant takes one for all or for none."""
    numbers = {len(told.references) for told in data.pictures}
    for told in data.pictures:
        number = len(told.references)
        if number > sizing.most:
            takes = count(sizing.most, "reference") if sizing.most else "none"
            yield Finding("references", told.path, f"{count(number, 'reference')}, where the variant takes {takes}")
        elif sizing.most == 1 and not number and len(numbers) > 1:
            yield Finding("references", told.path, "no reference, where others have one")


def of_likeness(data: Data, looks: Mapping[str, Look]) -> Iterator[Finding]:
    """Pictures that are there twice, to the byte or nearly."""
    seen = {told.path: looks[told.path] for told in data.pictures if not looks[told.path].problem}
    first: dict[str, str] = {}
    for path, one in seen.items():
        first.setdefault(one.digest, path)
    yield from _like("duplicate", "the same file as", alike.same({path: one.digest for path, one in seen.items()}))
    once = {path: one for path, one in seen.items() if first[one.digest] == path and not one.flat}
    groups = alike.near(
        {path: one.hash for path, one in once.items()}, {path: one.colours for path, one in once.items()}
    )
    yield from _like("near", "nearly the same as", groups)


def sharpness(seen: Look, brought: Fit) -> float | None:
    """Detail at the size that is taught, over that at a half or a quarter; None where the picture is too smooth."""
    side = math.sqrt(brought.resized.width * brought.resized.height)
    start = max(0, round(math.log2(seen.side / side)))
    detail = seen.detail[start : start + 3]
    return detail[0] / max(detail[1:]) if len(detail) > 1 and max(detail[1:]) >= TELLING else None


def _like(kind: str, words: str, groups: Sequence[alike.Group]) -> Iterator[Finding]:
    for group in groups:
        for path in group:
            others = tuple(one for one in group[: NAMED + 1] if one != path)[:NAMED]
            told = some([_short(one, path) for one in others], 2, of=len(group) - 1)
            yield Finding(kind, path, f"{words} {told}", others)


def _short(path: str, beside: str) -> str:
    """The name alone, for a picture of the same folder."""
    folder = beside.rpartition(os.sep)[0]
    return path.rpartition(os.sep)[2] if path.rpartition(os.sep)[0] == folder else path


def _real(path: str, resolve: Callable[[str], str]) -> str:
    if os.path.islink(path):  # noqa: PTH114 - ten thousand times
        return resolve(path)
    folder, name = os.path.split(path)
    return os.path.join(resolve(folder), name)  # noqa: PTH118
