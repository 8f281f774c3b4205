"""An audit as one HTML page that needs nothing else: small pictures inlined, everything that is not ours escaped.

The page shows at most `MOST` pictures, those with the weightiest findings first, so that it stays within some 10 MB
however many there are.
"""

from __future__ import annotations

import os
from base64 import b64encode
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorakit import pages
from lorakit.audit.data import Told
from lorakit.audit.findings import KINDS, Finding, Kind, Weight
from lorakit.audit.look import thumbnail
from lorakit.audit.looks import each
from lorakit.audit.report import Report
from lorakit.audit.summary import common_folder, named
from lorakit.buckets import Fit
from lorakit.words import count, some

if TYPE_CHECKING:
    pass

MOST = 1500  # pictures of a page
SIDE = 160  # pixels of a small picture, about 4 kB
SLIGHT = 0.01  # share cut away from which on the cut is drawn
LONGEST = 1000  # characters of a caption that the page holds


def write(report: Report, file: Path) -> None:
    """Write the page whole, or say why not."""
    pages.write(html(report), file, "--html")


def html(report: Report) -> str:
    """The page."""
    return pages.rendered("lorakit.audit", "page.html", _facts(report))


def _facts(report: Report) -> dict[str, Any]:
    """What the template is filled with."""
    pictures = {told.path: told for told in report.data.pictures}
    root = common_folder(report)
    shown = _chosen(report, list(pictures.values()))
    worst, share = report.worst
    most = max((one.passes for one in report.fillings), default=1)
    return {
        "title": f"lorakit check: {count(len(pictures), 'picture')}",
        "folders": some(sorted({os.path.dirname(path) for path in pictures}), 8),  # noqa: PTH120
        "pictures": len(pictures),
        "odd": len(pictures.keys() & report.by_picture.keys()),
        "errors": report.weighing(Weight.ERROR),
        "warnings": report.weighing(Weight.WARNING),
        "notes": report.weighing(Weight.NOTE),
        "kinds": [_kind(report, KINDS[name], found) for name, found in report.by_kind.items()],
        "elsewhere": [_finding(one, root) for one in report.findings if one.where not in pictures][:200],
        "fillings": [
            {
                "shape": one.shape,
                "pictures": one.pictures,
                "passes": one.passes,
                "batches": one.batches,
                "empty": one.empty,
                "share": round(100 * one.passes / most, 1),
            }
            for one in report.fillings
        ],
        "cropped": f"{report.cropped:.1%}",
        "worst": f"{named(worst, root)}, {share:.0%}" if share > SLIGHT else "",
        "cards": _cards(report, shown, root),
        "left_out": _left_out(len(pictures) - len(shown)),
    }


def _left_out(number: int) -> str:
    return f"{count(number, 'picture')} more, left out to keep the page small; --json tells of all." if number else ""


def _chosen(report: Report, pictures: Sequence[Told]) -> list[Told]:
    """The pictures that the page shows: by their weightiest finding, those with nothing found last."""
    order = {name: place for place, name in enumerate(KINDS)}

    def place(told: Told) -> int:
        return min((order[one.kind] for one in report.by_picture.get(told.path, ())), default=len(order))

    return sorted(pictures, key=place)[:MOST]


def _cards(report: Report, shown: Sequence[Told], root: str) -> Iterator[dict[str, Any]]:
    thumbs = each(partial(thumbnail, side=SIDE), [told.path for told in shown])
    for told, thumb in zip(shown, thumbs, strict=True):
        found = report.by_picture.get(told.path, ())
        yield {
            "name": named(told.path, root),
            "facts": _about(report, told),
            "caption": told.caption if len(told.caption) <= LONGEST else f"{told.caption[:LONGEST]}...",
            "thumb": b64encode(thumb).decode() if thumb else "",
            "cut": _cut(report.fits.get(told.path)),
            "kinds": " ".join(dict.fromkeys(one.kind for one in found)),
            "findings": [_finding(one, root) for one in found],
        }


def _about(report: Report, told: Told) -> str:
    seen, brought = report.looks[told.path], report.fits.get(told.path)
    parts = [f"{seen.width}x{seen.height}" if seen.width else "", f"taught as {brought.shape}" if brought else ""]
    parts.append(f"{told.repeats} times an epoch" if told.repeats != 1 else "")
    parts.append(count(len(told.references), "reference") if told.references else "")
    return ", ".join(part for part in parts if part)


def _cut(brought: Fit | None) -> str:
    """What is cut away at the top, right, bottom and left, as CSS has it; empty where that is next to nothing."""
    if brought is None or brought.cropped < SLIGHT:
        return ""
    width, height = brought.resized.width, brought.resized.height
    right, bottom = width - brought.left - brought.shape.width, height - brought.top - brought.shape.height
    shares = (brought.top / height, right / width, bottom / height, brought.left / width)
    return " ".join(f"{share:.1%}" for share in shares)


def _finding(finding: Finding, root: str) -> dict[str, str]:
    kind, where = KINDS[finding.kind], named(finding.where, root)
    told = finding.message.startswith(kind.says.rpartition(" ")[0] or kind.says)
    says = "" if told else f"{kind.says}: "
    return {"weight": str(kind.weight), "says": says, "where": where, "message": finding.message}


def _kind(report: Report, kind: Kind, found: Sequence[Finding]) -> dict[str, str]:
    number = len({one.where for one in found})
    counted, _, noun = count(number, kind.noun).partition(" ")
    advice = kind.advice or (f"The advice is {report.advised_by}." if report.advised_by else "")
    says = f"{noun} {kind.says}"
    return {"name": kind.name, "weight": str(kind.weight), "count": counted, "says": says, "advice": advice}
