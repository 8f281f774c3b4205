"""What judges say of a run's previews: how like they are to the pictures trained on, and to their prompts.

Answers are kept in the run's folder under digests of all that they depend on, so that asking again loads nothing.
"""

from __future__ import annotations

import hashlib
import json
import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from lorakit import captions, jsontext, pages
from lorakit.audit.data import Told
from lorakit.errors import LorakitError
from lorakit.evidence.previews import Judged, Previews, spaced, taught
from lorakit.history import History
from lorakit.judges import Answer, Judge, Question, digest_of

FILE = "judged.json"
VERSION = 1  # of the form, and of how answers are come by

Ask: TypeAlias = Callable[[Judge, Sequence[Question]], Sequence[Answer]]
"""Who loads a judge and puts questions to it."""


@dataclass(frozen=True, slots=True)
class Mean:
    """A mean over previews; `error` is its standard error, None where there is one preview."""

    value: float
    error: float | None
    previews: int


@dataclass(frozen=True, slots=True)
class Similar:
    """What a judge says of one checkpoint; None where no preview could be asked about."""

    judge: str
    image: Mean | None
    text: Mean | None


@dataclass(frozen=True, slots=True)
class Likeness:
    """A judge's answer to each preview; `compared` training pictures at most were held against one.

    `called` says that the run has trigger words, so that only previews whose prompt holds one are.
    """

    judge: Judge
    seen: tuple[tuple[Judged, Answer], ...]
    compared: int
    called: bool = True
    why_not: str = ""

    def of(self, update: int) -> Similar:
        """Those of one update together."""
        found = [answer for one, answer in self.seen if one.update == update]
        image, text = (_mean(values) for values in ([one.image for one in found], [one.text for one in found]))
        return Similar(self.judge.title, image, text)

    @property
    def updates(self) -> list[int]:
        """Those that drew what was judged."""
        return sorted({one.update for one, _ in self.seen})

    @property
    def cut(self) -> list[str]:
        """Prompts that are longer than what the judge reads."""
        return list(dict.fromkeys(one.prompt for one, answer in self.seen if answer.tokens > self.judge.reads))


def likeness(history: History, previews: Previews, judges: Sequence[Judge], ask: Ask) -> tuple[Likeness, ...]:
    """What each judge says; `ask` hears only of what no earlier answer is kept for."""
    pictures, why_not = taught(history.plan)
    like = {one.prompt: _like(one.prompt, pictures) for one in previews.judged}
    called = any(one.table.trigger for one in pictures)
    compared = max(map(len, like.values()), default=0)
    questions = [Question(one.path, one.prompt, like[one.prompt]) for one in previews.judged]
    keys, kept, found = _keys(questions), _Kept(history.folder / FILE), []
    for judge in judges:
        known = _answers(judge, dict(zip(keys, questions, strict=True)), kept, ask)
        seen = zip(previews.judged, (known[key] for key in keys), strict=True)
        found.append(Likeness(judge, tuple(seen), compared, called, why_not))
    return tuple(found)


def _like(prompt: str, pictures: Sequence[Told]) -> tuple[Path, ...]:
    """The pictures that the prompt calls for: those whose trigger it holds; all of them in a run without triggers."""
    if any(one.table.trigger for one in pictures):
        pictures = [one for one in pictures if one.table.trigger and captions.holds(prompt, one.table.trigger)]
    return tuple(map(Path, spaced([one.path for one in pictures])))


def _answers(judge: Judge, asked: Mapping[str, Question], kept: _Kept, ask: Ask) -> Mapping[str, Answer]:
    """The answer to each question by its key."""
    needless = {key: Answer() for key, one in asked.items() if not one.like and not (judge.reads and one.prompt)}
    known = kept.read(judge) | needless
    missing = [key for key in asked if key not in known]
    if missing:
        known |= dict(zip(missing, ask(judge, [asked[key] for key in missing]), strict=True))
        kept.write(judge, known)
    return known


def _keys(questions: Sequence[Question]) -> list[str]:
    """A digest for each: of its picture, of the prompt, and of the pictures that it is held against."""
    paths = {path for one in questions for path in (one.picture, *one.like)}
    content = {path: _content(path) for path in paths}
    like = {paths: _digest([content[path] for path in paths]) for paths in {one.like for one in questions}}
    return [_digest([content[one.picture], one.prompt, like[one.like]]) for one in questions]


def _digest(parts: Sequence[str]) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _content(path: Path) -> str:
    """The digest of a picture, empty where it is gone: then nobody can look at it either."""
    try:
        return digest_of(path)
    except OSError:
        return ""


def _mean(values: Sequence[float | None]) -> Mean | None:
    known = [one for one in values if one is not None]
    if not known:
        return None
    error = statistics.stdev(known) / len(known) ** 0.5 if len(known) > 1 else None
    return Mean(statistics.fmean(known), error, len(known))


def _sound(rows: Mapping[str, Any]) -> Iterator[tuple[str, Answer]]:
    """The rows that are answers."""
    for key, row in rows.items():
        if isinstance(row, list) and len(row) == 3 and all(map(_cosine, row[:2])) and type(row[2]) is int:
            yield key, Answer(*row)


def _cosine(value: object) -> bool:
    return value is None or (type(value) is float and math.isfinite(value) and abs(value) <= 1 + 1e-6)


class _Kept:
    """The file of answers; one that cannot be read holds none, one that cannot be written is asked for again."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def read(self, judge: Judge) -> dict[str, Answer]:
        """The judge's answers by key."""
        told = self._judges().get(judge.digest)
        rows = told.get("answers") if isinstance(told, dict) else None
        return dict(_sound(rows)) if isinstance(rows, dict) else {}

    def write(self, judge: Judge, known: dict[str, Answer]) -> None:
        """Put the judge's answers in the place of its earlier ones."""
        rows = {key: [one.image, one.text, one.tokens] for key, one in sorted(known.items())}
        told = {"name": judge.name, "kind": judge.kind, "answers": rows}
        whole = {"version": VERSION, "judges": {**self._judges(), judge.digest: told}}
        with suppress(LorakitError):
            pages.write(json.dumps(whole, indent=1) + "\n", self._file, "the run's folder")

    def _judges(self) -> dict[str, Any]:
        try:
            told = jsontext.table(self._file.read_bytes())
        except (OSError, ValueError):
            return {}
        judges = told.get("judges") if told.get("version") == VERSION else None
        return judges if isinstance(judges, dict) else {}
