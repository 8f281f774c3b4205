"""What is odd about captions, and about the prompts of previews."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from lorakit.audit.data import Data, Told
from lorakit.audit.findings import Finding
from lorakit.captions import CaptionAdvice, holds, misses
from lorakit.words import count

OVERLONG = 2000  # characters, about 512 tokens: the most that a text encoder in use here reads (T5)
PLACEHOLDER = "[trigger]"


def of_captions(data: Data) -> Iterator[Finding]:
    """Captions that are missing, empty, alike or overlong, and triggers that are not written alike."""
    counts = Counter(told.caption for told in data.pictures)
    spelled = _spelled(data)
    for told in data.pictures:
        if told.illegible:
            yield Finding("illegible", told.path, told.illegible)
            continue
        yield from _absent(told)
        trigger, text = told.table.trigger, told.text or ""
        if PLACEHOLDER in text and not trigger:
            yield Finding("placeholder", told.path, "nothing would take its place")
        if counts[told.caption] > 1 and told.caption not in ("", trigger):
            same = f"{count(counts[told.caption], 'picture')} have the same caption"
            yield Finding("identical", told.path, f"{same}: '{told.caption[:60]}'")
        if len(told.caption) > OVERLONG:
            yield Finding("overlong", told.path, f"{len(told.caption)} characters")
        if text and trigger and PLACEHOLDER not in text:
            yield from _trigger(told, text, trigger, spelled[trigger])


def of_advice(data: Data, prompts: Sequence[str], trigger: str, advice: CaptionAdvice | None) -> Iterator[Finding]:
    """Texts that are not as the family advises."""
    if advice is None:
        return
    texts = [(told.path, told.caption, told.table.trigger) for told in data.pictures if told.text]
    texts += [(f"prompt '{prompt[:60]}'", prompt, trigger) for prompt in prompts]
    for where, text, word in texts:
        for message in misses(text, word, advice):
            yield Finding("advice", where, message)


def _absent(told: Told) -> Iterator[Finding]:
    if told.text:
        return
    if not told.table.trigger:
        yield Finding("mute", told.path, "there is nothing to teach it by")
    elif told.text is not None:
        yield Finding("empty", told.path, f"the trigger '{told.table.trigger}' stands alone")
    elif told.table.captions != "none":
        name = Path(told.path).with_suffix(f".{told.table.captions}").name
        yield Finding("missing", told.path, f"there is no {name}" if told.table.list is None else "the list has none")


def _trigger(told: Told, text: str, trigger: str, spelled: tuple[int, int]) -> Iterator[Finding]:
    """Whether the trigger is written here as it is elsewhere; `spelled` counts texts with it, and exactly so."""
    holding, exactly = spelled
    if not holds(text, trigger):
        if holding:
            yield Finding("trigger", told.path, f"'{trigger}' is put in front; {holding} others name it themselves")
    elif trigger not in text and exactly:
        yield Finding("trigger", told.path, f"'{trigger}' is written in other capitals, which read as another word")


def _spelled(data: Data) -> dict[str, tuple[int, int]]:
    """By trigger, how many texts hold it, and how many of them in its own capitals."""
    holding: Counter[str] = Counter()
    exactly: Counter[str] = Counter()
    for told in data.pictures:
        text, trigger = told.text or "", told.table.trigger
        if trigger and (PLACEHOLDER in text or holds(text, trigger)):
            holding[trigger] += 1
            exactly[trigger] += PLACEHOLDER in text or trigger in text
    triggers = {told.table.trigger for told in data.pictures}
    return {trigger: (holding[trigger], exactly[trigger]) for trigger in triggers}
