"""The pictures of kohya's trainers, from a dataset file or from arguments, and the prompts of previews."""

from __future__ import annotations

import re
from math import sqrt
from pathlib import Path
from typing import Any

from lorakit.errors import ConfigError
from lorakit.importers import kohya_keys as known
from lorakit.importers.document import Document, read
from lorakit.importers.draft import Draft, flag, number, positive, text, texts, whole
from lorakit.importers.entries import Entry, keep, resolve
from lorakit.importers.keys import tell_all
from lorakit.importers.names import Meant
from lorakit.importers.report import shown
from lorakit.importers.shared import is_file, repeats_of

FOLDERS = ("image_dir", "image_directory")
PLACE = re.compile(r"(datasets\[(\d+)\]\.(?:subsets\[(\d+)\]\.)?)")
PROMPT_FLAG = re.compile(r"\s--(\w+)\s+")
SET_BY = {"w": "sampling.width", "h": "sampling.height", "s": "sampling.steps", "l": "sampling.guidance",
          "n": "sampling.negative", "d": "sampling.seed"}  # fmt: skip


def subsets(draft: Draft) -> None:
    """Every subset of every dataset as a [[data]] table; keys of [general] and of a dataset hold for those below."""
    entries = []
    for prefix, above in _places(draft):
        entry = _subset(draft, prefix, above)
        if entry is not None:
            entries.append(entry)
    legacy = _legacy(draft)
    entries += [legacy] if legacy else []
    resolve(draft, entries)
    places = [("", ("general.",)), *_places(draft)]
    for prefix in dict.fromkeys(one for own, above in places for one in (own, *above)):
        tell_all(draft, known.WHOLE, prefix)
        tell_all(draft, known.SUBSET, prefix)
    for leaf in list(draft.below("datasets[")) + list(draft.below("general.")):
        if leaf.key.rpartition(".")[2] in INHERITED:
            draft.tell(leaf.key, "dead", "it is said again further down, where it counts")


INHERITED = ("resolution", "batch_size", "num_repeats", "caption_extension", "caption_dropout_rate", "class_tokens")


def _places(draft: Draft) -> list[tuple[str, tuple[str, ...]]]:
    """The prefix of each subset, or of a dataset that has none, with the prefixes that it inherits from."""
    found: dict[str, tuple[str, ...]] = {}
    with_subsets: set[str] = set()
    for leaf in draft.all():
        place = PLACE.match(leaf.key)
        if place and place[3] is not None:
            dataset = f"datasets[{place[2]}]."
            with_subsets.add(dataset)
            found[place[1]] = (dataset, "general.")
        elif place:
            found.setdefault(f"datasets[{place[2]}].", ("general.",))
    return [(prefix, above) for prefix, above in found.items() if prefix not in with_subsets]


def _subset(draft: Draft, prefix: str, above: tuple[str, ...]) -> Entry | None:
    entry = Entry(draft, prefix)
    if draft.get(f"{prefix}is_reg", flag, False):
        why = "no regularisation pictures: name captioned ones as [[data]] with trigger = ''"
        for leaf in list(draft.below(prefix)):
            draft.tell(leaf.key, "refused", why)
        return None
    draft.tell(f"{prefix}is_reg", "carried", "off")
    for key in ("image_jsonl_file", "video_directory", "video_jsonl_file"):
        draft.tell(f"{prefix}{key}", "refused", "write a list of lorakit's own: a JSON line a picture (data.list)")
    said = next((key for key in FOLDERS if draft.has(f"{prefix}{key}")), "")
    folder = draft.get(f"{prefix}{said}", text, "") if said else ""
    if not folder or not keep(draft, entry, said, folder):
        return None
    _repeats(draft, entry, above, folder)
    _captions(draft, entry, above)
    _shared(draft, entry, above)
    for key in ("conditioning_data_dir", "control_directory"):
        entry.put(key, "references", draft.get(f"{prefix}{key}", text, ""))
    return entry


def _inherited(draft: Draft, key: str, prefixes: tuple[str, ...]) -> str:
    """The full key that says something for a subset: its own, its dataset's, that of [general], or an argument."""
    return next((f"{one}{key}" for one in (*prefixes, "") if draft.has(f"{one}{key}")), "")


def _repeats(draft: Draft, entry: Entry, above: tuple[str, ...], folder: str) -> None:
    key = _inherited(draft, "num_repeats", (entry.prefix, *above))
    named = repeats_of(folder)
    repeats = draft.get(key, positive, None) if key else None
    if repeats is not None:
        entry.table["repeats"] = repeats
        draft.tell(key, "carried", "", f"data.repeats = {repeats}")
    elif named > 1:
        entry.table["repeats"] = 1
        draft.findings.append(
            f"{folder} is shown once an epoch: of folder names, repeats are read below train_data_dir only. "
            f"Who means {named} times sets data.repeats = {named}."
        )


def _captions(draft: Draft, entry: Entry, above: tuple[str, ...]) -> None:
    key = _inherited(draft, "caption_extension", (entry.prefix, *above))
    usual = "txt" if entry.prefix and "subsets" not in entry.prefix else "caption"  # musubi-tuner's, sd-scripts'
    extension = draft.get(key, text, usual) if key else usual
    entry.table["captions"] = re.sub(r"[^A-Za-z0-9]", "", extension) or usual
    draft.tell(key, "carried", "", f"data.captions = {entry.table['captions']}")
    tokens = draft.get(f"{entry.prefix}class_tokens", text, "")
    why = "put before captions that lack it too; in kohya it stands only where there is no caption file"
    entry.put("class_tokens", "trigger", tokens, why)


def _shared(draft: Draft, entry: Entry, above: tuple[str, ...]) -> None:
    """What lorakit has once for a run (batch size, dropout), or by folder (resolution)."""
    prefixes = (entry.prefix, *above)
    key = _inherited(draft, "resolution", prefixes)
    if key:
        side, why = _side(draft.get(key, _shape, (512, 512)))
        entry.table["resolution"] = side
        draft.tell(key, "changed" if why else "carried", why, f"data.resolution = {side}")
    elif "subsets" not in entry.prefix and entry.prefix:
        draft.remark("resolution", "musubi-tuner's default, 960x544, is for videos; here the variant's own")
    for name, setting, reader in (
        ("batch_size", "train.batch_size", positive),
        ("train_batch_size", "train.batch_size", positive),
        ("caption_dropout_rate", "train.caption_dropout", number),
    ):
        key = _inherited(draft, name, prefixes)
        value = draft.get(key, reader, None) if key else None
        if value is not None and draft.setting(setting) in (None, value):
            draft.put(key, setting, value)
        elif value is not None:
            draft.tell(key, "refused", f"one {setting} for the run: {draft.setting(setting)}")
    for leaf in list(draft.below(entry.prefix)):
        if leaf.key.endswith("control_resolution"):  # old names of it begin with a model's
            side, why = _side(draft.get(leaf.key, _shape, (1024, 1024)))
            draft.put(leaf.key, "train.reference_resolution", side, why)


def _shape(value: Any) -> tuple[int, int]:
    """A width and a height: one number, two, or two in a text."""
    parts = re.split(r"[,x ]+", value.strip("[]() ")) if isinstance(value, str) else texts(value)
    sides = [positive(one) for one in parts]
    if len(sides) not in (1, 2):
        raise ValueError(f"{shown(value)} is not a width and a height")
    return sides[0], sides[-1]


def _side(shape: tuple[int, int]) -> tuple[int, str]:
    width, height = shape
    side = max(16, round(sqrt(width * height)))
    return side, "" if width == height else f"the area of {width}x{height}; pictures keep their shape"


def _legacy(draft: Draft) -> Entry | None:
    """The pictures of `train_data_dir`, whose sub-folders say their repeats by their names, here as there."""
    entry = Entry(draft, "")
    folder = draft.get("train_data_dir", text, "")
    why = "a picture without a caption has the rest of its folder's name there, and the trigger alone here"
    if not folder or not keep(draft, entry, "train_data_dir", folder, why):
        draft.tell("train_data_dir", "refused", "it names no folder")
        return None
    for old in ("caption_extention",):
        draft.tell(old, "dead", "caption_extension is its key")
    _captions(draft, entry, ())
    _shared(draft, entry, ())
    return entry


# -- previews ------------------------------------------------------------------------------------------------


def previews(draft: Draft, document: Document, about: Meant | None) -> None:
    """The prompts of a text file, a line each; the first line's settings hold for all."""
    name = draft.get("sample_prompts", text, "")
    if not name:
        draft.tell("sample_prompts", "carried", "none: the first captions are drawn")
        return None
    path = next((one for one in (Path(name), document.path.parent / name) if is_file(one)), None)
    if path is None or path.suffix.lower() != ".txt":
        why = "there is no such file here" if path is None else "only a text file, a prompt a line, is read"
        draft.tell("sample_prompts", "refused", f"{why}: the first captions are drawn, or sampling.prompts")
        return None
    try:
        lines = [line.strip() for line in read(path).text.splitlines()]
    except ConfigError as error:
        return draft.tell("sample_prompts", "refused", str(error))
    parts = [PROMPT_FLAG.split(line) for line in lines if line and not line.startswith("#")]
    prompts = [part[0].strip() for part in parts if part[0].strip()]
    why = _flags(draft, parts, about)
    if prompts:
        draft.put("sample_prompts", "sampling.prompts", prompts[:64], why, None if why else "carried")
    else:
        draft.tell("sample_prompts", "refused", "it holds no prompt: the first captions are drawn")
    return None


def _flags(draft: Draft, parts: list[list[str]], about: Meant | None) -> str:
    """Set what the first prompt sets; what is to be said of that."""
    said = [dict(zip(part[1::2], part[2::2], strict=True)) for part in parts]
    first = said[0] if said else {}
    multiple = about.family.side_multiple if about else 16
    for name, value in first.items():
        setting = SET_BY.get(name)
        guided = about is None or about.model.guidance == "true" or (name != "n" and about.model.guidance != "none")
        if setting is None or (name in "nl" and not guided):
            continue
        try:
            if name in ("w", "h"):
                draft.put("", setting, max(multiple, whole(value) // multiple * multiple))
            else:
                draft.put("", setting, value.strip() if name == "n" else number(value) if name == "l" else whole(value))
        except ValueError:
            continue
    if any(one != first for one in said):
        return "size, steps, guidance and seed of the first prompt hold for all"
    return "without what lorakit has no setting for" if set(first) - set(SET_BY) else ""
