"""The size of a plan's model: as its variant publishes it, or as a local folder's own configuration says."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from lorakit.checks import TOY
from lorakit.family import Family
from lorakit.plan import Plan
from lorakit.sizes import Configs, Size


def size_of(plan: Plan, family: Family) -> Size | None:
    """The size of a plan's model; None where nobody tells it."""
    return sized(family, plan.settings.variant, plan.settings.model.source)


def sized(family: Family, variant: str, source: str) -> Size | None:
    """The size of the model that `source` names; None where nobody tells it."""
    sizer = family.variants[variant].size
    if sizer is None:
        return None
    place = _folder(source, family)
    if place is None:
        return None if source == TOY else sizer({})
    try:
        size = sizer(configs(place))
    except (KeyError, TypeError, ValueError, ArithmeticError, IndexError):  # not the configuration of such a model
        return None
    return _weighed(size, place, family)


def local_folder(plan: Plan, family: Family) -> Path | None:
    """The model's folder, where it is on this machine without being fetched."""
    return _folder(plan.settings.model.source, family)


def _folder(source: str, family: Family) -> Path | None:
    if source == TOY:
        return family.toy_folder
    folder = Path(source).expanduser()
    return folder if folder.is_dir() else None


def configs(folder: Path) -> Configs:
    """Every readable config.json of a model folder, by component."""
    found: dict[str, dict[str, Any]] = {}
    for file in sorted(folder.glob("*/config.json")):
        try:
            table = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(table, dict):
            found[file.parent.name] = table
    return found


def _weighed(size: Size, folder: Path, family: Family) -> Size:
    """The size with the encoders' parameters by the files that hold them, which a configuration does not tell."""
    text = _parameters(folder, family.text_components)
    coder = _parameters(folder, family.image_components)
    return replace(
        size,
        text=replace(size.text, parameters=text or size.text.parameters),
        coder=replace(size.coder, parameters=coder or size.coder.parameters),
    )


def _parameters(folder: Path, components: tuple[str, ...]) -> int:
    """Parameters in the safetensors files of some components; of files under one name in two formats, the first."""
    total = 0
    for name in components:
        files = sorted((folder / name).glob("*.safetensors"), key=lambda file: (file.name.count("."), file.name))
        plain = [file for file in files if file.name.count(".") == files[0].name.count(".")]
        total += sum(file.stat().st_size for file in plain) // _bytes(folder / name / "config.json")
    return total


def _bytes(config: Path) -> int:
    """Bytes of a parameter, as the component says; 4 where it does not."""
    try:
        table = json.loads(config.read_text(encoding="utf-8"))
        return 2 if str(table.get("dtype") or table.get("torch_dtype")) in ("float16", "bfloat16") else 4
    except (OSError, ValueError, AttributeError):
        return 4
