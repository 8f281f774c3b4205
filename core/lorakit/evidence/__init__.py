"""Which checkpoint of a run to use: what was measured, what its previews show, and a recommendation with reasons."""

from __future__ import annotations

from lorakit.evidence.candidates import Candidate, candidates
from lorakit.evidence.choosing import MOST_DRIFT, Recommendation, recommend
from lorakit.evidence.likeness import Likeness, likeness
from lorakit.evidence.marked import MARK, mark, table
from lorakit.evidence.previews import Previews, judged

__all__ = [
    "MARK",
    "MOST_DRIFT",
    "Candidate",
    "Likeness",
    "Previews",
    "Recommendation",
    "candidates",
    "judged",
    "likeness",
    "mark",
    "recommend",
    "table",
]
