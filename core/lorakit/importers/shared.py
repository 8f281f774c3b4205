"""What every importer tells in the same way: the family, the weights, the run's name, sizes and number formats."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from lorakit.importers.draft import Draft, text
from lorakit.importers.names import Meant
from lorakit.importers.report import shown

HALF: Mapping[str, str] = {
    "float16": "fp16", "fp16": "fp16", "bfloat16": "bf16", "bf16": "bf16", "float32": "fp32", "fp32": "fp32",
    "float": "fp32",
}  # fmt: skip
"""Number formats of the exported file, by the names that others give to them."""
SINGLE = (".safetensors", ".ckpt", ".pt", ".pth", ".bin", ".gguf", ".sft")
REPEATED = re.compile(r"^(\d+)_.+$")  # 40_maya: kohya's way of saying 40 times an epoch


def say_family(draft: Draft, about: Meant | None) -> None:
    """Set family and variant, and that no preset stands below what the file says."""
    if about is not None:
        draft.put("", "family", about.family.name)
        draft.put("", "variant", about.variant or about.family.default_variant)
    draft.put("", "preset", "none")


def source(draft: Draft, key: str, about: Meant) -> None:
    """Where the weights are: the variant's own repository, another or a folder; single files are not read."""
    name = draft.get(key, text, "")
    published = about.model.source
    if not draft.has(key):
        return
    if name.lower() == published.lower():
        draft.tell(key, "carried", "", f"variant = {about.variant or about.family.default_variant}")
    elif key == "dit" or name.lower().endswith(SINGLE):
        draft.tell(
            key, "refused", f"lorakit reads model folders in diffusers layout, no single files: {published} is taken"
        )
    else:
        draft.put(key, "model.source", name)


def run_name(draft: Draft, key: str) -> None:
    """The run's name, without what cannot be in one."""
    if not draft.has(key):
        draft.tell(key, "carried", "null: as unsaid")
        return
    asked = draft.get(key, text, "")
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", asked).strip("-._")[:100]
    if name:
        draft.put(key, "name", name, "" if name == asked else "letters, digits, dots, hyphens and underscores only")
    else:
        draft.tell(key, "refused", "it is no name of a folder")


def size(draft: Draft, key: str, setting: str, side: int, multiple: int) -> None:
    """A side of previews, as a multiple of what the family needs."""
    fitting = max(multiple, side // multiple * multiple)
    draft.put(key, setting, fitting, "" if fitting == side else f"a multiple of {multiple}, as the family needs")


def precision(draft: Draft, key: str) -> None:
    """The number format of the frozen base in training."""
    if not draft.has(key):
        return
    asked = draft.get(key, text, "").lower()
    ours = {"no": "fp32", **HALF}.get(asked, "bf16")
    if ours == "fp16":
        draft.put(key, "train.precision", "bf16", "fp16 overflows in training; bf16 takes as much memory")
    elif asked in HALF or asked == "no":
        draft.put(key, "train.precision", ours)
    else:
        draft.put(key, "train.precision", ours, f"there is no {shown(asked)} here")


def pictures_in(folder: str) -> int:
    """How many pictures a folder holds; 0 where it is not here."""
    from lorakit.errors import DataError
    from lorakit.pictures import found

    try:
        root = Path(folder).expanduser()
        return sum(1 for _ in found(root)) if root.is_dir() else 0
    except (DataError, OSError, ValueError, RuntimeError):  # a path that no system takes, ~nobody
        return 0


def is_file(path: Path) -> bool:
    """Whether there is such a file; a name that no system takes is none."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def repeats_of(folder: str) -> int:
    """How often a folder is shown an epoch by its name; 1 where that says nothing."""
    named = REPEATED.match(folder.replace("\\", "/").rstrip("/").rpartition("/")[2])
    return int(named[1]) if named and len(named[1]) < 6 and int(named[1]) else 1
