"""An audit on a terminal: what matters first, a few names of each finding, and what to do."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from lorakit.audit.findings import KINDS, Finding, Weight
from lorakit.audit.report import Filling, Report
from lorakit.words import count

SHOWN = 3  # findings of a kind that are named
SHAPES = 4  # buckets that are named
LONGEST = 100  # characters of a line's message
HEADS = {Weight.ERROR: "Mend first", Weight.WARNING: "Worth a look", Weight.NOTE: "Good to know"}


def lines(report: Report, page: Path | None = None) -> Iterator[str]:
    """The audit in lines."""
    root = common_folder(report)
    for weight, head in HEADS.items():
        kinds = [found for name, found in report.by_kind.items() if KINDS[name].weight == weight]
        if kinds:
            yield head
            for found in kinds:
                yield from _kind(report, found, root)
            yield ""
    yield from _buckets(report)
    yield _last(report)
    if page is not None:
        yield f"page         {page}"


def _kind(report: Report, found: Sequence[Finding], root: str) -> Iterator[str]:
    kind = KINDS[found[0].kind]
    places = len({finding.where for finding in found})
    yield f"  {count(places, kind.noun)} {kind.says}"
    for finding in found[:SHOWN]:
        message = finding.message if len(finding.message) <= LONGEST else f"{finding.message[:LONGEST]}..."
        yield _printable(f"    {named(finding.where, root)}: {message}")
    if len(found) > SHOWN:
        yield f"    and {len(found) - SHOWN} more"
    advice = kind.advice or (f"The advice is {report.advised_by}." if report.advised_by else "")
    if advice:
        yield f"    -> {advice}"


def _buckets(report: Report) -> Iterator[str]:
    if not report.fillings:
        return
    shown = [f"{one.shape} {one.pictures}" for one in report.fillings[:SHAPES]]
    rest = report.fillings[SHAPES:]
    if rest:
        shown.append(f"{len(rest)} more with {sum(one.pictures for one in rest)}")
    yield f"buckets      {', '.join(shown)}{_empty(report.fillings)}"
    path, share = report.worst
    most = f", at most {share:.0%} ({os.path.basename(path)})" if share else ""  # noqa: PTH119
    yield _printable(f"cut away     {report.cropped:.1%} of the pixels on average{most}")


def _empty(fillings: Sequence[Filling]) -> str:
    empty, batches = sum(one.empty for one in fillings), sum(one.batches for one in fillings)
    return f"; {count(empty, 'place')} of {count(batches, 'batch')} stay empty" if empty else ""


def _last(report: Report) -> str:
    pictures = {told.path for told in report.data.pictures}
    odd = len(pictures & report.by_picture.keys())
    on = f" on {count(odd, 'picture')}" if odd else ""
    return f"{count(len(report.data.pictures), 'picture')} looked at, {count(len(report.findings), 'finding')}{on}"


def common_folder(report: Report) -> str:
    """The folder that every picture lies in, with its separator; empty where there is none."""
    folders = {os.path.dirname(told.path) for told in report.data.pictures}  # noqa: PTH120
    try:
        return os.path.join(os.path.commonpath(folders), "") if folders else ""  # noqa: PTH118
    except ValueError:  # on several drives
        return ""


def named(where: str, root: str) -> str:
    """A picture as it is called below `root`."""
    return where[len(root) :] if root and where.startswith(root) else where


def _printable(line: str) -> str:
    """Without what would steer a terminal, as file names and captions may."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in line)
