"""Optimizers over the adapter's one flat parameter, and the course of the learning rate."""

from __future__ import annotations

import math

import torch
from torch import nn

from lorakit.settings import Optimizer


def adamw(parameter: nn.Parameter, settings: Optimizer) -> torch.optim.Optimizer:
    """AdamW, fused into one kernel."""
    return torch.optim.AdamW(
        [parameter],
        lr=settings.learning_rate,
        betas=settings.betas,
        eps=settings.epsilon,
        weight_decay=settings.weight_decay,
        fused=True,
    )


def adamw8bit(parameter: nn.Parameter, settings: Optimizer) -> torch.optim.Optimizer:
    """AdamW whose two moments are 8-bit, in blocks of 256; the flat parameter is far over the size below which
    bitsandbytes would keep them in 32 bits."""
    from bitsandbytes.optim import AdamW8bit

    made: torch.optim.Optimizer = AdamW8bit(
        [parameter],
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
