"""How much memory the card has, and how much of it a frozen base takes."""

from __future__ import annotations

import functools
import os
import subprocess
from collections.abc import Mapping

from lorakit import Family, LorakitError, Part

PLAIN = 2.0
"""Bytes of a weight that is not quantized."""
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


def taken(family: Family, variant: str | None, quantizers: Mapping[str, Part]) -> dict[str, float]:
    """GB of the family's base under each quantizer that tells its own, whoever brought it, the finest first.

    Nothing where the family does not tell its size.
    """
    about = family.variants.get(variant or family.default_variant)
    if about is None or about.size is None:
        return {}
    size = about.size({})  # as published
    outside = PLAIN * (size.parameters - size.quantizable)
    held = {name: PLAIN if name == "none" else part.held for name, part in quantizers.items()}
    known = sorted(((name, bytes_) for name, bytes_ in held.items() if bytes_), key=lambda one: -one[1])
    return {name: (outside + bytes_ * size.quantizable) / 1e9 for name, bytes_ in known}
