"""The recommendation written down: `recommended.json` beside the run's other files, and nothing else touched."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lorakit import pages
from lorakit.evidence import words
from lorakit.evidence.candidates import Candidate
from lorakit.evidence.choosing import Gap, Ranked, Recommendation
from lorakit.evidence.likeness import Likeness, Mean
from lorakit.evidence.previews import Previews
from lorakit.history import History

MARK = "recommended.json"
VERSION = 1  # of the form


def mark(history: History, made: Recommendation, previews: Previews, judged: Sequence[Likeness] = ()) -> Path:
    """Write what is recommended into the run's folder, whole or not at all; where it is."""
    file = history.folder / MARK
    pages.write(json.dumps(table(history, made, previews, judged), indent=1) + "\n", file, "the run's folder")
    return file


def table(
    history: History, made: Recommendation, previews: Previews, judged: Sequence[Likeness] = ()
) -> dict[str, Any]:
    """The recommendation for programs: paths are below the run's folder, so that it may be moved."""
    first = made.first
    return {
        "version": VERSION,
        "run": history.plan.settings.name,
        "recommended": _ranked(history, first, made) if first else None,
        "ranked": [_ranked(history, one, made) for one in made.ranked],
        "dropped": [{"update": one.candidate.update, "because": one.why} for one in made.dropped],
        "unmeasured": list(made.unmeasured),
        "course": words.course(made),
        "weak": words.weak(history, made, previews),
        "most_drift": made.most_drift,
        "judges": [_judge(history, one) for one in judged],
    }


def _judge(history: History, told: Likeness) -> dict[str, Any]:
    updates = {update: told.of(update) for update in told.updates}
    return {
        "name": told.judge.name,
        "kind": told.judge.kind,
        "sha256": told.judge.digest,
        "training_pictures": told.compared,
        "prompts_cut": told.cut,
        "updates": [
            {"update": update, "image": _mean(one.image), "text": _mean(one.text)} for update, one in updates.items()
        ],
        "previews": [
            {"file": _below(history.folder, seen.path), "image": answer.image, "text": answer.text}
            for seen, answer in told.seen
        ],
    }


def _mean(mean: Mean | None) -> dict[str, Any] | None:
    return None if mean is None else {"mean": mean.value, "error": mean.error, "previews": mean.previews}


def _ranked(history: History, one: Ranked, made: Recommendation) -> dict[str, Any]:
    return {
        "update": one.candidate.update,
        "file": _below(history.folder, one.candidate.file),
        "within_one_standard_error": one.within,
        "above_the_lowest": _gap(one.gap),
        "measured": _measured(one.candidate),
        "previews": [
            {
                "file": _below(history.folder, seen.path),
                "prompt": seen.prompt,
                "bits": round(seen.bits, 3),
                "fault": seen.fault,
                "bits_from_the_nearest_training_picture": seen.apart,
                "near_copy_of": seen.copied,
            }
            for seen in one.candidate.previews
        ],
        "reasons": words.reasons(one, made),
    }


def _measured(one: Candidate) -> Mapping[str, float | None]:
    assert one.measured is not None
    names = ("loss", "loss_error", "trigger", "trigger_error", "drift", "norm")
    return {name: getattr(one.measured, name) for name in names}


def _gap(gap: Gap | None) -> Mapping[str, float | None] | None:
    return None if gap is None else {"loss": gap.mean, "error": gap.error}


def _below(folder: Path, file: Path) -> str:
    return str(file.relative_to(folder)) if file.is_relative_to(folder) else str(file)
