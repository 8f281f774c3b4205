"""Qwen-Image and Qwen-Image-Edit for lorakit."""

from __future__ import annotations

from lorakit import Registry, hookimpl
from lorakit_qwen.family import Qwen


@hookimpl
def register(registry: Registry) -> None:
    """Register the family."""
    registry.family(Qwen())
