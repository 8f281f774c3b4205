"""The versions that a run's result depends on."""

from __future__ import annotations

from importlib.metadata import version

NAMES = ("lorakit", "torch", "diffusers", "transformers", "peft")


def versions() -> tuple[tuple[str, str], ...]:
    """Each library with its version."""
    return tuple((name, version(name)) for name in NAMES)
