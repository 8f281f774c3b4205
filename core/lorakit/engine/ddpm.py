"""Discrete diffusion with 1000 noise levels (arXiv 2006.11239), and Euler's method as its sampler.

Formulas and defaults are those of diffusers' DDPMScheduler (training) and EulerDiscreteScheduler (previews), and read
the same scheduler_config.json.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from lorakit.checks import prediction_error
from lorakit.engine.schedulers import Sampler, over
from lorakit.errors import ModelError
from lorakit.family import FlowShift
from lorakit.planned import PlannedScheduler

Prediction = Literal["epsilon", "v_prediction"]
ALMOST_NOTHING = 2.0**-24  # what diffusers' sampler leaves of the picture where its schedule leaves nothing


class Ddpm:
    """x_t = a x_0 + b noise with a² = alphas_cumprod[t] and b² = 1 - a²; t is an index from 0 to 999.

    The model predicts the noise (epsilon) or a noise - b x_0 (v-prediction, arXiv 2202.00512).
    """

    def __init__(self, settings: PlannedScheduler, shift: FlowShift | None, config: Mapping[str, Any]) -> None:
        self._settings, self._config = settings, config
        self.prediction = _prediction(settings.prediction, config)
        self.kept = alphas_cumprod(config)
        self._there = self.kept  # on the device of what was asked last

    def level(self, u: Tensor, tokens: int) -> Tensor:
        """An index, each as likely as any other."""
        return (u * len(self.kept)).long().clamp(max=len(self.kept) - 1)

    def noise(self, noise: Tensor, offset: Tensor) -> Tensor:
        """The noise, with a share of it common to a channel (offset noise), which lets pictures be dark or bright."""
        share = self._settings.noise_offset or 0.0
        return noise + share * offset if share else noise

    def mix(self, clean: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Picture and noise in the schedule's shares."""
        a, b = self._shares(t, clean)
        return a * clean + b * noise

    def target(self, clean: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """The noise, or the velocity."""
        if self.prediction == "epsilon":
            return noise
        a, b = self._shares(t, clean)
        return a * noise - b * clean

    def weight(self, t: Tensor) -> Tensor:
        """1, or min-SNR weights (arXiv 2303.09556): min(snr, gamma) / snr, over snr + 1 for v-prediction."""
        gamma = self._settings.min_snr_gamma
        if gamma is None:
            return torch.ones(len(t), device=t.device)
        kept = self._kept_at(t)
        snr = kept / (1 - kept)
        if self.prediction == "epsilon":
            return (gamma / snr).clamp(max=1.0)  # also where nothing of the picture is left
        return snr.clamp(max=gamma) / (snr + 1)

    def sampler(self, steps: int, tokens: int, shift: float | None = None) -> Sampler:
        """Euler's method, spaced as the model's scheduler says."""
        return Euler(self.kept, self.prediction, self._config, steps)

    def _shares(self, t: Tensor, latents: Tensor) -> tuple[Tensor, Tensor]:
        kept = self._kept_at(t)
        return over(kept.sqrt(), latents), over((1 - kept).sqrt(), latents)

    def _kept_at(self, t: Tensor) -> Tensor:
        """How much of the picture's variance is left at indices t (B,); nothing waits for the device a second time."""
        if self._there.device != t.device:
            self._there = self.kept.to(t.device)
        return self._there[t.long()]


class Euler:
    """Euler's method in the scale of x_0 + sigma noise, where sigma is b / a; equal to EulerDiscreteScheduler."""

    def __init__(self, kept: Tensor, prediction: Prediction, config: Mapping[str, Any], steps: int) -> None:
        kept = kept.clamp(min=ALMOST_NOTHING)
        sigmas = ((1 - kept) / kept).sqrt()
        at, self._spacing = _spaced(steps, len(kept), config)
        low = at.floor().long().clamp(max=len(kept) - 1)
        high = (low + 1).clamp(max=len(kept) - 1)
        self._sigmas = torch.cat([torch.lerp(sigmas[low], sigmas[high], (at - low).float()), torch.zeros(1)])
        self.times = at.float()
        self._prediction = prediction

    def start(self, noise: Tensor) -> Tensor:
        """Noise of the first sigma; a little more with `leading` spacing, which does not begin at the last level."""
        first = float(self._sigmas[0])
        return noise * ((first**2 + 1) ** 0.5 if self._spacing == "leading" else first)

    def seen(self, latents: Tensor, number: int) -> Tensor:
        """Latents brought back to the size that they had in training."""
        return (latents.float() / (self._sigmas[number] ** 2 + 1) ** 0.5).to(latents.dtype)

    def step(self, latents: Tensor, prediction: Tensor, number: int) -> Tensor:
        """Towards the picture that the prediction means, in fp32."""
        now, then = (float(sigma) for sigma in self._sigmas[number : number + 2])
        held, said = latents.float(), prediction.float()
        if self._prediction == "epsilon":
            slope = said
        else:
            clean = said * (-now / (now**2 + 1) ** 0.5) + held / (now**2 + 1)
            slope = (held - clean) / now
        return (held + slope * (then - now)).to(latents.dtype)


def alphas_cumprod(config: Mapping[str, Any]) -> Tensor:
    """How much of the picture's variance is left at each level, (1000,), from a scheduler_config.json."""
    number, kind = int(config.get("num_train_timesteps", 1000)), config.get("beta_schedule", "scaled_linear")
    first, last = float(config.get("beta_start", 0.00085)), float(config.get("beta_end", 0.012))
    if config and "beta_schedule" not in config:
        raise ModelError(
            f"the model's scheduler is {config.get('_class_name', 'of an unknown kind')}",
            why="it has no beta_schedule, so the model was not trained with this objective",
            fix="Use a model that was; its scheduler_config.json says so.",
        )
    if config.get("trained_betas") is not None:
        betas = torch.tensor(config["trained_betas"], dtype=torch.float32)
    elif kind == "scaled_linear":
        betas = torch.linspace(first**0.5, last**0.5, number) ** 2
    elif kind == "linear":
        betas = torch.linspace(first, last, number)
    else:
        raise ModelError(
            f"the model's scheduler has the beta_schedule '{kind}'", fix="Known are scaled_linear, linear."
        )
    if config.get("rescale_betas_zero_snr"):
        return _without_terminal_signal(torch.cumprod(1 - betas, 0))
    return torch.cumprod(1 - betas, 0)


def _without_terminal_signal(kept: Tensor) -> Tensor:
    """The schedule stretched so that nothing of the picture is left at its end (arXiv 2305.08891, algorithm 1)."""
    root = kept.sqrt()
    kept = ((root - root[-1]) * (root[0] / (root[0] - root[-1]))) ** 2
    betas = 1 - torch.cat([kept[:1], kept[1:] / kept[:-1]])  # and back, for diffusers rounds so
    return torch.cumprod(1 - betas, 0)


def _prediction(asked: Prediction | None, config: Mapping[str, Any]) -> Prediction:
    own = config.get("prediction_type", "epsilon")
    if own not in get_args(Prediction):
        raise ModelError(f"the model predicts '{own}'", why="its scheduler_config.json says so", fix="Choose another.")
    if asked is not None and asked != own:
        raise prediction_error(asked, own, "scheduler.prediction")
    found: Prediction = own
    return found


def _spaced(steps: int, number: int, config: Mapping[str, Any]) -> tuple[Tensor, str]:
    """The indices of a walk, from noise to picture, and the name of their spacing."""
    spacing = str(config.get("timestep_spacing", "linspace"))
    if spacing == "linspace":
        at = torch.linspace(0, number - 1, steps, dtype=torch.float64).flip(0)
    elif spacing == "leading":
        even = torch.arange(steps, dtype=torch.float64) * (number // steps)
        at = even.flip(0) + int(config.get("steps_offset", 0))
    elif spacing == "trailing":
        at = torch.arange(number, 0, -number / steps, dtype=torch.float64).round()[:steps] - 1
    else:
        raise ModelError(
            f"the model's scheduler has the timestep_spacing '{spacing}'",
            fix="Known are linspace, leading and trailing.",
        )
    return at, spacing
