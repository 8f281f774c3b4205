"""Stable Diffusion XL for lorakit."""

from __future__ import annotations

from lorakit import Registry, hookimpl
from lorakit_sdxl.family import Sdxl


@hookimpl
def register(registry: Registry) -> None:
    """Register the family."""
    registry.family(Sdxl())
