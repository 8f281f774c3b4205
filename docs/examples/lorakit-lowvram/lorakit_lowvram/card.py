"""How much memory the card has, and how much of it a frozen base takes."""

from __future__ import annotations

import functools
import os
import subprocess

from lorakit import Family, LorakitError

HELD = {"none": 2.0, "int8": 1.0, "int8-fast": 1.0, "int4": 0.52, "int2": 0.31}
"""Bytes of a weight inside the blocks under each of core's quantizers, the finest first."""
SHARE = 0.6
"""Share of the card that the base may take; pictures, the adapter and its gradients want the rest."""


def memory() -> float | None:
    """The card's memory in GB; None where nobody tells it."""
    said = os.environ.get("LOWVRAM_GB")
    if said is None:
        return _measured()
    try:
        found = float(said)
    except ValueError:
        found = 0.0
    if found <= 0:
        raise LorakitError(f"LOWVRAM_GB = {said} is no size of a card", where="the environment", fix="Say GB, as 12.")
    return found


@functools.cache
def _measured() -> float | None:
    ask = ("nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits")
    try:
        answer = subprocess.run(ask, capture_output=True, text=True, timeout=5, check=True).stdout
        return float(answer.splitlines()[0]) * 2**20 / 1e9
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return None


def taken(family: Family, variant: str | None) -> dict[str, float]:
    """GB of the family's base under each quantizer; nothing where it does not tell its size."""
    about = family.variants.get(variant or family.default_variant)
    if about is None or about.size is None:
        return {}
    size = about.size({})  # as published
    outside = 2.0 * (size.parameters - size.quantizable)
    return {name: (outside + held * size.quantizable) / 1e9 for name, held in HELD.items()}
