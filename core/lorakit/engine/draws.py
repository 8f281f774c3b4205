"""Every random draw of training, as a function of the seed and the number of the pass.

No generator is carried along, so a run that goes on after a stop, or that draws previews on the way, makes the same
draws as one that does neither; and pictures draw the same whether they come one by one or in a batch.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

NEAR = 1e-6  # keeps uniform numbers off 0 and 1, where inverse distributions are infinite


@dataclass(frozen=True, slots=True)
class Draw:
    """One pass's chance: noise (C, H, W), a number in (0, 1) for its level, and one for dropping its caption.

    `offset` (C, 1, 1) is noise common to each channel.
    """

    noise: Tensor
    level: Tensor
    drop: float
    offset: Tensor


def seed_of(what: str, seed: int, number: int) -> int:
    """A seed for one kind of draw of one pass."""
    digest = hashlib.sha256(f"{what} {seed} {number}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def draw(seed: int, number: int, shape: tuple[int, ...]) -> Draw:
    """The draws of pass `number`, made on the CPU so that they are the same on every device."""
    level, drop, generator = chance(seed, number)
    noise = torch.randn(shape, generator=generator)
    return Draw(noise, level, drop, torch.randn((*shape[:1], 1, 1), generator=generator))


def chance(seed: int, number: int) -> tuple[Tensor, float, torch.Generator]:
    """A pass's numbers for its level and for dropping its caption, and what its noise is drawn from next."""
    generator = torch.Generator().manual_seed(seed_of("pass", seed, number))
    numbers = torch.rand(2, generator=generator).clamp_(NEAR, 1 - NEAR)
    return numbers[0], numbers[1].item(), generator
