"""Training objectives, with the sampler that belongs to each."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from lorakit.family import FlowShift
from lorakit.planned import PlannedScheduler


class Scheduler(Protocol):
    """A training objective: how noise is mixed in, what the model must predict, and how to walk back."""

    def level(self, u: Tensor, tokens: int) -> Tensor:
        """Noise levels for u, uniform in (0, 1), for pictures of `tokens` image tokens."""

    def mix(self, clean: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Latents (B, C, H, W) at noise levels t (B,)."""

    def target(self, clean: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """What `predict` should answer, of the latents' shape."""

    def weight(self, t: Tensor) -> Tensor:
        """How much each item's loss counts, (B,)."""

    def levels(self, steps: int, tokens: int, shift: float | None = None) -> Tensor:
        """The noise levels of a sampling walk, from noise to picture, `steps` + 1 of them."""

    def step(self, latents: Tensor, prediction: Tensor, now: Tensor, then: Tensor) -> Tensor:
        """Latents at level `now` brought to level `then`."""


class FlowMatch:
    """Flow matching: x_t = (1 - t) x_0 + t noise, and the model predicts noise - x_0; t is in (0, 1]."""

    def __init__(self, settings: PlannedScheduler, shift: FlowShift | None) -> None:
        self._settings, self._shift = settings, shift or FlowShift()

    def level(self, u: Tensor, tokens: int) -> Tensor:
        """Inverse distribution functions, so that each way of drawing is a function of one uniform number."""
        way = self._settings.timesteps
        if way in ("uniform", "weighted"):
            return u
        normal = torch.special.ndtri(u)
        if way == "logit-normal":
            mean, std = self._settings.mean, self._settings.std
            normal = (0.0 if mean is None else mean) + (1.0 if std is None else std) * normal
        level = torch.sigmoid(normal)
        if way == "shift":
            factor = self._settings.shift or self._shift.at(tokens)
            level = shifted(level, factor)
        return level

    def mix(self, clean: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """A straight line from picture to noise."""
        return torch.lerp(clean, noise, _over(t, clean))

    def target(self, clean: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """The velocity along that line."""
        return noise - clean

    def weight(self, t: Tensor) -> Tensor:
        """1, or the bell of `weighted`."""
        return _bell(t) if self._settings.timesteps == "weighted" else torch.ones_like(t)

    def levels(self, steps: int, tokens: int, shift: float | None = None) -> Tensor:
        """Evenly spaced levels, shifted for the picture's size and stretched to the terminal level; then 0.

        Equal to diffusers' FlowMatchEulerDiscreteScheduler with dynamic exponential shifting, given the pipelines'
        sigmas linspace(1, 1 / steps, steps). A fixed `shift` is not stretched: ComfyUI's ModelSamplingAuraFlow with
        the scheduler `simple`.
        """
        even = torch.linspace(1.0, 1 / steps, steps, dtype=torch.float64)
        levels = shifted(even, shift or self._shift.at(tokens))
        if shift is None and self._shift.terminal is not None:
            levels = 1 - (1 - levels) * (1 - self._shift.terminal) / (1 - levels[-1])
        return torch.cat([levels, levels.new_zeros(1)]).float()

    def step(self, latents: Tensor, prediction: Tensor, now: Tensor, then: Tensor) -> Tensor:
        """One Euler step, in fp32."""
        return (latents.float() + (then - now) * prediction.float()).to(latents.dtype)


def shifted(level: Tensor, factor: float) -> Tensor:
    """Levels moved up by `factor`: s t / (1 + (s - 1) t)."""
    return factor * level / (1 + (factor - 1) * level)


# Loss weights over t of ai-toolkit's `weighted` (measured there on Flex.1-alpha; 1000 values, of which these are
# enough to draw the curve); divided by their mean, so that the mean weight is 1.
_BELL_AT = (0.001, 0.05, 0.25, 0.5, 0.75, 0.876, 0.9, 1.0)
_BELL = (0.447, 0.582, 0.715, 0.925, 1.355, 1.5227, 1.507, 0.906)


def _bell(t: Tensor) -> Tensor:
    at, value = torch.tensor(_BELL_AT, device=t.device), torch.tensor(_BELL, device=t.device)
    right = torch.searchsorted(at, t.float()).clamp(1, len(_BELL_AT) - 1)
    share = ((t - at[right - 1]) / (at[right] - at[right - 1])).clamp(0, 1)
    return torch.lerp(value[right - 1], value[right], share) / torch.trapezoid(value, at)


def _over(t: Tensor, latents: Tensor) -> Tensor:
    return t.to(latents.dtype).view(-1, *[1] * (latents.ndim - 1))
