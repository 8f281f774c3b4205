"""An audit: everything that was found, by kind and by picture, and how the buckets fill."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from lorakit.audit.data import Data, Told, gather
from lorakit.audit.findings import KINDS, Finding, Weight
from lorakit.audit.look import Look
from lorakit.audit.looks import looks
from lorakit.audit.of_captions import of_advice, of_captions
from lorakit.audit.of_pictures import fitted, of_content, of_files, of_likeness, of_references, of_sizes
from lorakit.buckets import Fit, Shape
from lorakit.captions import CaptionAdvice
from lorakit.dataset import Sizing
from lorakit.planned import PlannedData


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What pictures are held against: how they are brought to size, and what the run says about them."""

    tables: Sequence[PlannedData]
    sizing: Sizing
    batch_size: int = 1
    trigger: str = ""
    prompts: Sequence[str] = ()
    advice: CaptionAdvice | None = None


@dataclass(frozen=True, slots=True)
class Filling:
    """How a bucket fills in an epoch: pictures, passes, batches, and places of the last batch that stay empty."""

    shape: Shape
    pictures: int
    passes: int
    batches: int
    empty: int


@dataclass(frozen=True, slots=True)
class Report:
    """Everything that an audit found."""

    data: Data
    looks: dict[str, Look]
    fits: dict[str, Fit]
    findings: tuple[Finding, ...]
    fillings: tuple[Filling, ...]
    advised_by: str = ""
    by_kind: dict[str, list[Finding]] = field(init=False)
    by_picture: dict[str, list[Finding]] = field(init=False)

    def __post_init__(self) -> None:
        kinds: dict[str, list[Finding]] = {name: [] for name in KINDS}
        pictures: defaultdict[str, list[Finding]] = defaultdict(list)
        for finding in self.findings:
            kinds[finding.kind].append(finding)
            pictures[finding.where].append(finding)
        object.__setattr__(self, "by_kind", {name: found for name, found in kinds.items() if found})
        object.__setattr__(self, "by_picture", dict(pictures))

    @property
    def cropped(self) -> float:
        """Share of the pixels that is cut away, on average."""
        return sum(one.cropped for one in self.fits.values()) / len(self.fits) if self.fits else 0.0

    @property
    def worst(self) -> tuple[str, float]:
        """The picture that loses most, and the share that it loses."""
        return max(((path, one.cropped) for path, one in self.fits.items()), key=lambda one: one[1], default=("", 0.0))

    def weighing(self, weight: Weight) -> int:
        """How many findings have this weight."""
        return sum(finding.weight == weight for finding in self.findings)

    def plain(self) -> dict[str, Any]:
        """As JSON holds it."""
        worst, share = self.worst
        return {
            "pictures": len(self.data.pictures),
            "findings": [
                {
                    "kind": one.kind,
                    "weight": str(one.weight),
                    "where": one.where,
                    "message": one.message,
                    "others": list(one.others),
                }
                for one in self.findings
            ],
            "buckets": [
                {
                    "shape": str(one.shape),
                    "pictures": one.pictures,
                    "passes": one.passes,
                    "batches": one.batches,
                    "empty": one.empty,
                }
                for one in self.fillings
            ],
            "cropped": {"average": round(self.cropped, 4), "most": round(share, 4), "where": worst},
        }


def audit(asked: Asked, tell: Callable[[int, int], object] = lambda done, total: None) -> Report:
    """Everything odd about the pictures, their captions and the prompts; `tell` hears of pictures looked at."""
    data = gather(asked.tables)
    seen = looks([*(told.path for told in data.pictures), *data.references, *data.strays], tell)
    fits = {
        told.path: brought
        for told in data.pictures
        if (brought := fitted(told, seen[told.path], asked.sizing)) is not None
    }
    found = sorted(_findings(asked, data, seen, fits), key=lambda one: list(KINDS).index(one.kind))
    because = asked.advice.because if asked.advice is not None else ""
    return Report(data, seen, fits, tuple(found), tuple(_fillings(data.pictures, fits, asked.batch_size)), because)


def _findings(asked: Asked, data: Data, seen: dict[str, Look], fits: dict[str, Fit]) -> Iterator[Finding]:
    yield from of_files(data, seen)
    for told in data.pictures:
        yield from of_sizes(told, seen[told.path], fits.get(told.path), asked.sizing)
        yield from of_content(told, seen[told.path])
    yield from of_references(data, asked.sizing)
    yield from of_likeness(data, seen)
    yield from of_captions(data)
    yield from of_advice(data, asked.prompts, asked.trigger, asked.advice)


def _fillings(pictures: Sequence[Told], fits: dict[str, Fit], batch_size: int) -> Iterator[Filling]:
    """By shape, the fullest first; references are left out, though pictures with other ones share no batch."""
    numbers: Counter[Shape] = Counter()
    passes: Counter[Shape] = Counter()
    for told in pictures:
        if told.path in fits:
            numbers[fits[told.path].shape] += 1
            passes[fits[told.path].shape] += told.repeats
    for shape, shown in sorted(passes.items(), key=lambda item: (-item[1], item[0])):
        batches = -(-shown // batch_size)
        yield Filling(shape, numbers[shape], shown, batches, batches * batch_size - shown)
