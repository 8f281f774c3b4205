"""Captions as a family advises them: how long, and what stands before what."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

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
