"""Toy models that plugins ship: a small model folder, copied and told which pipeline it is."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lorakit.family import Variant


def copy(shipped: Path, folder: Path, variant: Variant, classes: Mapping[str, tuple[str, str]]) -> None:
    """Copy a shipped model folder as one of `variant`; `classes` are (library, class) of its further components."""
    shutil.copytree(shipped, folder, dirs_exist_ok=True)
    index = folder / "model_index.json"
    about = {name: list(classes[name]) for name in variant.components}
    rewrite(index, {"_class_name": variant.pipeline, **about})


def rewrite(file: Path, changes: Mapping[str, Any]) -> None:
    """Change some keys of a JSON file."""
    table = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps({**table, **changes}, indent=1) + "\n", encoding="utf-8")
