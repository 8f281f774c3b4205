"""Captions: read beside pictures, given the trigger, and held against what a family advises."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lorakit.errors import DataError

SUBJECT = "subject"


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptionAdvice:
    """How a family's captions and prompts are best written; `because` says who found that.

    `order` names the parts in their order, each with words that show it; `SUBJECT` is where the trigger stands.
    """

    shortest: int
    longest: int
    order: tuple[tuple[str, tuple[str, ...]], ...]
    because: str


def beside(path: Path, extension: str) -> str:
    """The text file's words in one line; empty where there is no file."""
    file = path.with_suffix(f".{extension}")
    try:
        return " ".join(file.read_text(encoding="utf-8-sig").split())
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"the caption {file} cannot be read", why=str(error), fix="Save it as UTF-8.") from error


def with_trigger(caption: str, trigger: str) -> str:
    """The caption with `[trigger]` replaced, and with the trigger put first where the caption lacks it."""
    if not trigger:
        return caption
    caption = caption.replace("[trigger]", trigger)
    if re.search(rf"(?<!\w){re.escape(trigger)}(?!\w)", caption, re.IGNORECASE):
        return caption
    return f"{trigger}, {caption}" if caption else trigger


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


def _parts(caption: str, trigger: str, advice: CaptionAdvice) -> Iterator[tuple[int, str]]:
    """The parts that can be told, in the caption's order, each with its place in the advised one."""
    last = -1
    for part in caption.lower().split(","):
        for place, (name, words) in enumerate(advice.order):
            shown = (trigger.lower(),) if name == SUBJECT and trigger else words
            if any(re.search(rf"(?<!\w){re.escape(word)}(?!\w)", part) for word in shown):
                if place != last:
                    yield place, name
                last = place
                break
