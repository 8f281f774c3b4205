"""Latents as the tokens of a transformer whose patches are squares of 2 by 2, and back."""

from __future__ import annotations

from torch import Tensor, nn


def pack(latents: Tensor) -> Tensor:
    """(B, C, H, W) to tokens (B, H/2 * W/2, C * 4), the four pixels of a token last."""
    return nn.functional.pixel_unshuffle(latents, 2).flatten(2).transpose(1, 2)


def unpack(tokens: Tensor, height: int, width: int) -> Tensor:
    """The reverse, for latents of `height` by `width`."""
    grid = tokens.transpose(1, 2).reshape(len(tokens), -1, height // 2, width // 2)
    return nn.functional.pixel_shuffle(grid, 2)
