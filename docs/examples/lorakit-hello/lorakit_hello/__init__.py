"""Stable Diffusion 1.5 for lorakit."""

from lorakit import Registry, hookimpl
from lorakit_hello.family import Hello


@hookimpl
def register(registry: Registry) -> None:
    """Register the family."""
    registry.family(Hello())
