"""FLUX.1 for lorakit: dev and schnell, which draw, and Kontext, which edits."""

from __future__ import annotations

from lorakit import Registry, hookimpl
from lorakit_flux.family import Flux


@hookimpl
def register(registry: Registry) -> None:
    """Register the family."""
    registry.family(Flux())
