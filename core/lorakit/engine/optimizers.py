"""Optimizers over the adapter's flat parameters, and the course of the learning rate.

An optimizer is made from groups as torch takes them, one for each part of the adapter that learns at a rate of its own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from lorakit.settings import Optimizer


def adamw(groups: Sequence[dict[str, Any]], settings: Optimizer) -> torch.optim.Optimizer:
    """AdamW, fused into one kernel."""
    return torch.optim.AdamW(
        list(groups),
        lr=settings.learning_rate,
        betas=settings.betas,
        eps=settings.epsilon,
        weight_decay=settings.weight_decay,
        fused=True,
    )


def adamw8bit(groups: Sequence[dict[str, Any]], settings: Optimizer) -> torch.optim.Optimizer:
    """AdamW whose two moments are 8-bit, in blocks of 256; the flat parameter is far over the size below which
    bitsandbytes would keep them in 32 bits."""
    from bitsandbytes.optim import AdamW8bit

    made: torch.optim.Optimizer = AdamW8bit(
        list(groups),
        lr=settings.learning_rate,
        betas=settings.betas,
        eps=settings.epsilon,
        weight_decay=settings.weight_decay,
        min_8bit_size=1,
    )
    return made


def learning_rate(settings: Optimizer, update: int, updates: int) -> float:
    """The learning rate of update `update` (from 1) of `updates`."""
    if update <= settings.warmup:
        return settings.learning_rate * update / settings.warmup
    if settings.schedule == "constant":
        return settings.learning_rate
    done = (update - settings.warmup - 1) / max(1, updates - settings.warmup)
    share = 1 - done if settings.schedule == "linear" else 0.5 + 0.5 * math.cos(math.pi * done)
    return settings.learning_rate * share
