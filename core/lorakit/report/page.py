"""The page put together: its template filled in with what the run's folder tells."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from hashlib import sha256
from importlib import resources
from pathlib import Path
from typing import Any

from lorakit import evidence, pages
from lorakit.errors import RunError
from lorakit.evidence import Likeness, Previews, Recommendation, words
from lorakit.history import History
from lorakit.report import plots, shown, told

SCRIPTS = ("uPlot.iife.min.js", "plots.js")
STYLES = ("uPlot.min.css", "page.css")


def write(history: History, file: Path, where: str = "the run's folder", judged: Sequence[Likeness] = ()) -> None:
    """Write the page whole, or say why not; `where` is what named the file."""
    pages.write(html(history, judged), file, where)


def html(history: History, judged: Sequence[Likeness] = ()) -> str:
    """The page; `judged` is what judges say of the previews."""
    return pages.rendered("lorakit.report", "page.html", facts(history, judged))


def facts(history: History, judged: Sequence[Likeness] = ()) -> dict[str, Any]:
    """What the template is filled with."""
    previews = evidence.judged(history)
    made, why_not = _recommended(history, previews, judged)
    first = made.first.candidate.update if made and made.first else None
    scripts = [_resource(name) for name in SCRIPTS]
    return {
        "title": history.plan.settings.name,
        "status": told.status(history),
        "summary": list(told.summary(history)),
        "proof": history.end.proof if history.end else "",
        "choice": told.choice(history, made, previews) if made else None,
        "why_not": why_not,
        "plots": [plots.described(plot) for plot in plots.plots(history, first, judged)],
        "judges": [(one.judge.title, words.judge(one)) for one in judged],
        "pictures": shown.gallery(history, previews, first),
        "sheets": list(shown.sheets(history)),
        "alarms": list(told.alarms(history)),
        "warnings": list(told.warnings(history)),
        "data": told.data(history.plan),
        "plan": list(told.plan(history.plan)),
        "phases": list(told.phases(history)),
        "styles": [_resource(name) for name in STYLES],
        "scripts": scripts,
        "policy": " ".join(f"'sha256-{_digest(one)}'" for one in scripts),
    }


def _recommended(history: History, previews: Previews, judged: Sequence[Likeness]) -> tuple[Recommendation | None, str]:
    """What `lorakit pick` would say, or why it would say nothing."""
    try:
        return evidence.recommend(evidence.candidates(history, previews, judged)), ""
    except RunError as error:
        return None, str(error)


def _resource(name: str) -> str:
    """A file of this package that stands in the page as it is."""
    import markupsafe

    text = resources.files("lorakit.report").joinpath(name).read_text(encoding="utf-8").strip()
    return markupsafe.Markup(text)


def _digest(script: str) -> str:
    return b64encode(sha256(script.encode()).digest()).decode()
