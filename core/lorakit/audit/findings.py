"""What can be found, in the order of what matters, and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Weight(StrEnum):
    """How much a finding matters."""

    ERROR = "error"  # training refuses, or would fail
    WARNING = "warning"  # training works, and teaches something that is rarely meant
    NOTE = "note"  # worth knowing


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of finding: `says` goes on after a number of `noun`."""

    name: str
    weight: Weight
    says: str
    advice: str
    noun: str = "picture"


@dataclass(frozen=True, slots=True)
class Finding:
    """Something odd; `where` is a picture, a prompt, a folder, or empty for the whole; `others` are its like."""

    kind: str
    where: str
    message: str
    others: tuple[str, ...] = ()

    @property
    def weight(self) -> Weight:
        """How much it matters."""
        return KINDS[self.kind].weight


_ERRORS = (
    ("unreadable", "not readable", "Save it again from the original, or remove it."),
    ("truncated", "cut off", "Copy or download it again: some of its pixels are missing."),
    ("patch", "smaller than one patch", "Use a larger original, or remove it."),
    ("twice", "named more than once", "Name each folder once; data.repeats shows pictures more often."),
    ("mute", "without a caption and without a trigger", "Write a text file beside it, or name a trigger word."),
    ("illegible", "with a caption that cannot be read", "Save the text file as UTF-8."),
    ("placeholder", "with [trigger] in the caption, and no trigger word is named", "Say --trigger WORD."),
    ("references", "with another number of references than the variant takes", "Add or remove references."),
)
_WARNINGS = (
    ("duplicate", "the same file as another", "Keep one of them; data.repeats says how often it is shown."),
    ("near", "nearly the same as another", "Keep the best one, unless that weight is meant: it is learned twice."),
    ("upscaled", "enlarged or blurred", "Use the original: the model learns the blur as well."),
    ("tiny", "of less than a quarter of the training area", "Use a larger original; details are learned as they are."),
    ("extreme", "longer than 4 to 1", "Cut it yourself: only a part of it is shown."),
    ("cropped", "cut by more than a quarter to fit a bucket", "Cut it yourself, so that what matters stays in."),
    ("flat", "of one colour", "Remove it, unless that is what is taught."),
    ("missing", "without a caption", "Write a text file of the same name beside it: the trigger stands alone now."),
    ("empty", "with an empty caption", "Write what it shows: the trigger stands alone now."),
    ("identical", "with the caption of another", "Say what differs; what no caption names is learned as the trigger."),
    ("overlong", "with a very long caption", "Shorten it: text encoders read a few hundred words at most."),
    ("trigger", "without the trigger as others have it", "Write the trigger in every caption alike, or in none."),
)
_NOTES = (
    ("transparent", "with transparency", "It is put over white; put it over the background that you mean."),
    ("grey", "without colour", "Say so in the caption, or the model learns it as part of the subject."),
    ("small", "smaller than the training resolution", "Nothing has to be done: it is taught at its own size."),
)

KINDS = {
    kind.name: kind
    for kind in (
        *(Kind(name, Weight.ERROR, says, advice) for name, says, advice in _ERRORS),
        Kind("stray", Weight.ERROR, "of no picture", "Name it like its picture: a_1.png for a.png.", "reference"),
        *(Kind(name, Weight.WARNING, says, advice) for name, says, advice in _WARNINGS),
        Kind("advice", Weight.WARNING, "not as the family advises", "", "text"),
        Kind("folder", Weight.WARNING, "not read", "Name it too, or move its pictures.", "folder"),
        *(Kind(name, Weight.NOTE, says, advice) for name, says, advice in _NOTES),
    )
}
"""Every kind by its name, in the order in which they are told."""
