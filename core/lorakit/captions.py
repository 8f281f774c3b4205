"""Captions: read beside pictures, given the trigger, and held against what a family advises."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from lorakit.errors import DataError

SUBJECT = "subject"


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptionAdvice:
    """How a family's captions and prompts are best written; `because` says who found that.

    `order` names the parts in their order, each with words that show it; `SUBJECT` is where the trigger stands.
    `joined` are words with those that help them along.
    """

    shortest: int
    longest: int
    order: tuple[tuple[str, tuple[str, ...]], ...]
    because: str
    joined: tuple[tuple[str, tuple[str, ...]], ...] = ()


def file_of(path: Path, extension: str) -> str:
    """The text file beside a picture."""
    stem, _, suffix = str(path).rpartition(".")
    if not stem or not suffix or os.sep in suffix or stem.endswith(os.sep):  # a name without an ending
        return str(path.with_suffix(f".{extension}"))
    return f"{stem}.{extension}"  # what with_suffix says, in a tenth of its time


def words_of(file: str) -> str:
    """The text file's words in one line; empty where there is no file."""
    try:
        return " ".join(_bytes_of(file).decode("utf-8-sig").split())
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"the caption {file} cannot be read", why=str(error), fix="Save it as UTF-8.") from error


def _bytes_of(file: str) -> bytes:
    opened = os.open(file, os.O_RDONLY | getattr(os, "O_BINARY", 0))  # half the time of open(), for many small files
    try:
        parts = []
        while part := os.read(opened, 1 << 16):
            parts.append(part)
        return b"".join(parts)
    finally:
        os.close(opened)


def with_trigger(caption: str, trigger: str) -> str:
    """The caption with `[trigger]` replaced, and with the trigger put first where the caption lacks it."""
    if not trigger:
        return caption
    caption = caption.replace("[trigger]", trigger)
    if holds(caption, trigger):
        return caption
    return f"{trigger}, {caption}" if caption else trigger


def holds(caption: str, trigger: str) -> bool:
    """Whether the trigger stands in the caption as a whole word, in capitals or not."""
    return _word(trigger).search(caption) is not None


@lru_cache(maxsize=64)
def _word(word: str) -> re.Pattern[str]:
    return re.compile(rf"(?<!\w){re.escape(word)}(?!\w)", re.IGNORECASE)


def without_trigger(caption: str, trigger: str) -> str:
    """The caption without the trigger, and without the comma that it leaves behind; as it is where it lacks it."""
    shorter = _word(trigger).sub("", caption) if trigger else caption
    if shorter == caption:
        return caption
    parts = (" ".join(part.split()) for part in shorter.split(","))
    return ", ".join(part for part in parts if part)


def misses(caption: str, trigger: str, advice: CaptionAdvice) -> Iterator[str]:
    """What a caption misses of the advice, a sentence each."""
    length = len(caption)
    if not advice.shortest <= length <= advice.longest:
        yield f"{length} characters, where {advice.shortest} to {advice.longest} are advised"
    found = list(_parts(caption, trigger, advice))
    places = [place for place, _ in found]
    if places != sorted(places):
        names = " then ".join(name for _, name in found)
        advised = ", ".join(name for name, _ in advice.order)
        yield f"its parts come as {names}, where {advised} is advised"
    said = caption.lower()
    for word, helpers in advice.joined:
        if word.lower() in said and not any(helper.lower() in said for helper in helpers):
            yield f"it says {word} without {' or '.join(helpers)}, which help it"


def _parts(caption: str, trigger: str, advice: CaptionAdvice) -> Iterator[tuple[int, str]]:
    """The parts that can be told, in the caption's order, each with its place in the advised one."""
    last = -1
    shown = _shown(trigger.lower(), advice)
    for part in caption.lower().split(","):
        for place, (name, words) in enumerate(shown):
            if words is not None and words.search(part):
                if place != last:
                    yield place, name
                last = place
                break


@lru_cache(maxsize=64)
def _shown(trigger: str, advice: CaptionAdvice) -> tuple[tuple[str, re.Pattern[str] | None], ...]:
    """The parts of the advice, each with what shows it; None where nothing does."""
    found = []
    for name, words in advice.order:
        asked = (trigger,) if name == SUBJECT and trigger else words
        any_of = "|".join(map(re.escape, asked))
        found.append((name, re.compile(rf"(?<!\w)(?:{any_of})(?!\w)") if asked else None))
    return tuple(found)
