"""The pictures of an ai-toolkit file, and what its previews draw."""

from __future__ import annotations

import re
from typing import Any

from lorakit.importers import ai_toolkit_keys as known
from lorakit.importers.conditioning import drawn
from lorakit.importers.draft import Draft, number, positive, text, texts, whole
from lorakit.importers.entries import Entry, keep, resolve
from lorakit.importers.keys import tell_all
from lorakit.importers.names import Meant
from lorakit.importers.report import shown
from lorakit.importers.shared import repeats_of, size

CONTROLS = ("control_path", "control_path_1", "control_path_2", "control_path_3")
INLINE = re.compile(r"\s--(\w+)\s")


def datasets(draft: Draft, about: Meant | None) -> None:
    """Every dataset as a [[data]] table."""
    places = sorted(
        {int(found[1]) for leaf in draft.below("datasets[") if (found := re.match(r"datasets\[(\d+)\]", leaf.key))}
    )
    entries = [entry for place in places if (entry := _dataset(draft, f"datasets[{place}]."))]
    resolve(draft, entries)
    edits = about is not None and about.model.references
    if edits and not any("references" in entry.table for entry in entries):
        why = "ai-toolkit refuses an editing model without control pictures; lorakit teaches it without references"
        draft.remark("datasets[*].control_path", why)
    _dropout(draft, places)
    for place in places:
        tell_all(draft, known.DATA, f"datasets[{place}].")


def _dataset(draft: Draft, prefix: str) -> Entry | None:
    entry = Entry(draft, prefix)
    folder = draft.get(f"{prefix}folder_path", text, "") or draft.get(f"{prefix}dataset_path", text, "")
    said = "folder_path" if draft.get(f"{prefix}folder_path", text, "") else "dataset_path"
    if said == "folder_path":
        draft.tell(f"{prefix}dataset_path", "dead", "folder_path counts")
    if folder.endswith(".json"):
        draft.tell(f"{prefix}{said}", "refused", "write a list of lorakit's own: a JSON line a picture (data.list)")
        return None
    named, repeats = repeats_of(folder), draft.get(f"{prefix}num_repeats", positive, None)
    why = ""
    if named > 1 and repeats is None:
        why = f"shown {named} times an epoch, as kohya reads its name; in ai-toolkit the name means nothing"
    if not folder or not keep(draft, entry, said, folder, why):
        return None
    if repeats is not None:
        entry.put("num_repeats", "repeats", repeats, f"over the folder's name, which says {named}" if named > 1 else "")
    entry.put("caption_ext", "captions", draft.get(f"{prefix}caption_ext", text, "txt").lstrip("."))
    entry.put("trigger_word", "trigger", draft.get(f"{prefix}trigger_word", text, ""))
    _resolution(draft, entry)
    _controls(draft, entry)
    return entry


def _resolution(draft: Draft, entry: Entry) -> None:
    key = f"{entry.prefix}resolution"
    sides = draft.get(key, _sides, [512])
    side, why = max(sides), ""
    if len(sides) > 1 and len(set(sides)) == 1:
        why = (
            f"an area of {side}²; a list names several sizes in ai-toolkit, no width and height, and the same size "
            f"{len(sides)} times shows every picture {len(sides)} times"
        )
    elif len(sides) > 1:
        why = f"ai-toolkit shows every picture at each of these sizes; here at one, the largest: {side}²"
    entry.put("resolution", "resolution", side, why)
    if not draft.has(key):
        entry.table["resolution"] = side


def _sides(value: Any) -> list[int]:
    return [positive(one) for one in texts(value)] or [512]


def _controls(draft: Draft, entry: Entry) -> None:
    named: list[tuple[str, str]] = []
    for key in CONTROLS:
        for folder in draft.get(f"{entry.prefix}{key}", texts, []):
            named.append((key, folder))
    if not named:
        return
    first, folder = named[0]
    more = len({one for _, one in named}) > 1
    why = "one folder of references: put all of a picture's there, as a_1.png and a_2.png for a.png" if more else ""
    entry.put(first, "references", folder, why)
    for key, other in named[1:]:
        if key != first:
            draft.tell(f"{entry.prefix}{key}", "refused", f"{shown(other)} is not read: one folder of references")


def _dropout(draft: Draft, places: list[int]) -> None:
    """One share for the run: the largest, where folders differ."""
    keys = [f"datasets[{place}].caption_dropout_rate" for place in places]
    shares = {key: draft.get(key, number, 0.0) for key in keys}
    most = max(shares.values(), default=0.0)
    for key, share in shares.items():
        why = "one share for the run, the largest" if share != most else ""
        if draft.setting("trigger") or draft.has("trigger_word"):
            why = why or (most and "a caption that is dropped is empty here; in ai-toolkit the trigger is left") or ""
        draft.put(key, "train.caption_dropout", most, why)


# -- previews ------------------------------------------------------------------------------------------------


def samples(draft: Draft, about: Meant | None) -> None:
    """Prompts, their references, their size and what they are held against."""
    trigger = draft.get("trigger_word", text, "")
    prompts: list[str] = []
    references: list[list[str]] = []
    inline = False
    for words, seen in _prompts(draft):
        found = INLINE.search(f"{words} ")
        cut = words[: found.start()].rstrip() if found else words
        said = cut.replace("[trigger]", trigger) if trigger else cut
        inline = inline or bool(found)
        if said:
            prompts.append(said)
            references.append(seen)
    if prompts:
        why = "settings inside prompts are not read; [sampling] sets them for all" if inline else ""
        why = why or ("the first 64 of them" if len(prompts) > 64 else "")
        draft.put("", "sampling.prompts", prompts[:64])
        draft.put("sample.prompts", "sampling.prompts", prompts[:64], why)
    if any(references):
        draft.put("", "sampling.references", references[:64])
    multiple = about.family.side_multiple if about else 16
    for side in ("width", "height"):
        if draft.has(f"sample.{side}"):
            size(draft, f"sample.{side}", f"sampling.{side}", draft.get(f"sample.{side}", whole, 512), multiple)
        else:
            draft.unsaid(f"sample.{side}", f"sampling.{side}", 512 // multiple * multiple)
    drawn(draft, about, "sample.guidance_scale", "sample.neg")
    if about is None or about.model.guidance != "none":
        draft.unsaid("sample.guidance_scale", "sampling.guidance", 7.0)


def _prompts(draft: Draft) -> list[tuple[str, list[str]]]:
    """Each prompt with its reference pictures; those of a list of samples are told of here."""
    found: list[tuple[str, list[str]]] = []
    items = [leaf for leaf in draft.below("sample.samples[") if leaf.key.endswith("].prompt")]
    for leaf in items:
        prefix = leaf.key.removesuffix("prompt")
        seen = [draft.leaf(f"{prefix}{key}") for key in ("ctrl_img", "ctrl_img_1", "ctrl_img_2", "ctrl_img_3")]
        pictures = [one for one in seen if one is not None and one.value]
        for one in pictures:
            draft.tell(one.key, "carried", "", f"sampling.references[{len(found)}]")
        _of_one_prompt(draft, prefix)
        draft.tell(leaf.key, "carried", "", f"sampling.prompts[{len(found)}]")
        found.append(
            (leaf.value if isinstance(leaf.value, str) else shown(leaf.value), [str(one.value) for one in pictures])
        )
    legacy = draft.leaf("sample.prompts")
    if items and legacy is not None:
        draft.drop("sample.prompts", "dead", "sample.samples counts")
    elif legacy is not None:
        words = draft.get("sample.prompts", texts, [])
        found += [(one, []) for one in words]
        if not words:
            draft.tell("sample.prompts", "carried", "none: the first captions are drawn")
    return found


def _of_one_prompt(draft: Draft, prefix: str) -> None:
    for leaf in list(draft.below(prefix)):
        if not leaf.key.endswith((".prompt",)):
            draft.tell(leaf.key, "refused", "one width, height, guidance, seed and number of steps for all prompts")
