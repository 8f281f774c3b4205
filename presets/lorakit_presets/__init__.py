"""Presets of the first-party families: `<family>/<name>.toml` beside this file."""

from __future__ import annotations

from pathlib import Path

from lorakit import Registry, hookimpl


@hookimpl
def register(registry: Registry) -> None:
    """Register each family's folder of presets."""
    for folder in sorted(path for path in Path(__file__).parent.iterdir() if path.is_dir()):
        if any(folder.glob("*.toml")):
            registry.presets(folder.name, folder)
