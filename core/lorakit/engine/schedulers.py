"""What a training objective is, with the sampler that belongs to it; and flow matching."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from lorakit.engine.unread import onto
from lorakit.family import FlowShift
from lorakit.planned import PlannedScheduler


class Sampler(Protocol):
    """A walk from noise to a picture, in as many steps as it has `times`."""

    times: Tensor
    """What the model is told at each step, in the units of training."""

    def start(self, noise: Tensor) -> Tensor:
        """Standard normal noise (B, C, H, W) as the latents that the walk begins with."""

    def seen(self, latents: Tensor, number: int) -> Tensor:
        """The latents as the model is shown them at step `number`."""

    def step(self, latents: Tensor, prediction: Tensor, number: int) -> Tensor:
        """The latents after step `number`."""


class Scheduler(Protocol):
    """A training objective: how noise is mixed in, what the model must predict, and how to walk back.

    Made from the planned settings, the variant's shift (None where it has none) and the model's own
    scheduler_config.json.
    """

    def level(self, u: Tensor, tokens: int) -> Tensor:
        """Noise levels for u, uniform in (0, 1), for pictures of `tokens` image tokens: what `predict` is told."""

    def noise(self, noise: Tensor, offset: Tensor) -> Tensor:
        """The noise to mix in, of two standard normal draws: for each number (B, C, H, W) and channel (B, C, 1, 1)."""

    def mix(self, clean: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Latents (B, C, H, W) at noise levels t (B,)."""

    def target(self, clean: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """What `predict` should answer, of the latents' shape."""

    def weight(self, t: Tensor) -> Tensor:
        """How much each item's loss counts, (B,)."""

    def sampler(self, steps: int, tokens: int, shift: float | None = None) -> Sampler:
        """The walk that previews take."""


class FlowMatch:
    """Flow matching: x_t = (1 - t) x_0 + t noise, and the model predicts noise - x_0; t is in (0, 1]."""

    def __init__(self, settings: PlannedScheduler, shift: FlowShift | None, config: Mapping[str, Any]) -> None:
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

    def noise(self, noise: Tensor, offset: Tensor) -> Tensor:
        """The noise as it is."""
        return noise

    def mix(self, clean: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """A straight line from picture to noise."""
        return torch.lerp(clean, noise, over(t, clean))

    def target(self, clean: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """The velocity along that line."""
        return noise - clean

    def weight(self, t: Tensor) -> Tensor:
        """1, or the bell of `weighted`."""
        return _bell(t) if self._settings.timesteps == "weighted" else torch.ones_like(t)

    def levels(self, steps: int, tokens: int, shift: float | None = None) -> Tensor:
        """The noise levels of a walk, `steps` + 1: evenly spaced, shifted for the picture's size and stretched to the
        terminal level; then 0.

        Equal to diffusers' FlowMatchEulerDiscreteScheduler with dynamic exponential shifting, given the pipelines'
        sigmas linspace(1, 1 / steps, steps); and with a shift of its own, given no sigmas. A fixed `shift` that is
        asked for is not stretched: ComfyUI's ModelSamplingAuraFlow with the scheduler `simple`.
        """
        lowest = self._shift.lowest if shift is None else None
        even = torch.linspace(1.0, lowest or 1 / steps, steps, dtype=torch.float64)
        levels = shifted(even, shift or self._shift.at(tokens))
        if shift is None and self._shift.terminal is not None:
            levels = 1 - (1 - levels) * (1 - self._shift.terminal) / (1 - levels[-1])
        return torch.cat([levels, levels.new_zeros(1)]).float()

    def sampler(self, steps: int, tokens: int, shift: float | None = None) -> Sampler:
        """Euler's method down these levels."""
        return FlowEuler(self.levels(steps, tokens, shift))


class FlowEuler:
    """Euler's method over the noise levels of flow matching, in fp32."""

    def __init__(self, levels: Tensor) -> None:
        self._levels, self.times = levels, levels[:-1]

    def start(self, noise: Tensor) -> Tensor:
        """The noise itself: the walk begins at level 1."""
        return noise

    def seen(self, latents: Tensor, number: int) -> Tensor:
        """The latents themselves."""
        return latents

    def step(self, latents: Tensor, prediction: Tensor, number: int) -> Tensor:
        """Along the predicted velocity to the next level."""
        now, then = self._levels[number : number + 2].to(latents.device)
        moved: Tensor = (latents.float() + (then - now) * prediction.float()).to(latents.dtype)
        return moved


def shifted(level: Tensor, factor: float) -> Tensor:
    """Levels moved up by `factor`: s t / (1 + (s - 1) t)."""
    return factor * level / (1 + (factor - 1) * level)


# Loss weights over t of ai-toolkit's `weighted` (measured there on Flex.1-alpha; 1000 values, of which these are
# enough to draw the curve); divided by their mean, so that the mean weight is 1.
_BELL_AT = (0.001, 0.05, 0.25, 0.5, 0.75, 0.876, 0.9, 1.0)
_BELL = (0.447, 0.582, 0.715, 0.925, 1.355, 1.5227, 1.507, 0.906)


def _bell(t: Tensor) -> Tensor:
    at, value = onto(torch.tensor(_BELL_AT), t.device), onto(torch.tensor(_BELL), t.device)
    right = torch.searchsorted(at, t.float()).clamp(1, len(_BELL_AT) - 1)
    share = ((t - at[right - 1]) / (at[right] - at[right - 1])).clamp(0, 1)
    return torch.lerp(value[right - 1], value[right], share) / torch.trapezoid(value, at)


def over(t: Tensor, latents: Tensor) -> Tensor:
    """Numbers (B,) in the shape and format that multiply latents (B, C, H, W)."""
    return t.to(latents.dtype).view(-1, *[1] * (latents.ndim - 1))
