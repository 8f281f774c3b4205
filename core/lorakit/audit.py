"""What is odd about a folder of pictures, before anything is taught with it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from lorakit.captions import CaptionAdvice, misses
from lorakit.dataset import Dataset


@dataclass(frozen=True, slots=True)
class Finding:
    """Something odd; `where` is a picture, a prompt, or empty for the whole."""

    where: str
    message: str


def audit(dataset: Dataset, prompts: Sequence[str], trigger: str, advice: CaptionAdvice | None) -> Iterator[Finding]:
    """Findings about the pictures, their captions, and the prompts of previews; `advice` is the family's, if any."""
    for note in dataset.notes:
        yield Finding("", note)
    counts = Counter(sample.caption for sample in dataset.samples)
    for caption, count in counts.items():
        if count > 1 and caption != trigger:
            yield Finding("", f"{count} pictures have the same caption: '{caption[:60]}'")
    if advice is None:
        return
    texts = [(str(sample.path), sample.caption) for sample in dataset.samples]
    texts += [(f"prompt '{prompt[:60]}'", prompt) for prompt in prompts]
    for where, text in texts:
        for message in misses(text, trigger, advice):
            yield Finding(where, message)
