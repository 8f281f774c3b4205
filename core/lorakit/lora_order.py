"""What is asked of LoRA files that are written anew. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from lorakit.layer_names import Layout

Alpha = float | Literal["fold", "restore"]
"""The alpha that is written, where the layout has one: a number, that of the training, or the rank with B scaled."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """None changes nothing. `weights` are of the files in order, none for 1 each."""

    layout: Layout
    dtype: str | None = None
    weights: Sequence[float] = ()
    rank: int | None = None
    alpha: Alpha = "fold"
    metadata: bool = True
