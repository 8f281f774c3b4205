"""Discrete diffusion equals diffusers' DDPMScheduler in training and its EulerDiscreteScheduler in previews."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDPMScheduler, EulerDiscreteScheduler
from diffusers.training_utils import compute_snr

from lorakit.engine.ddpm import Ddpm
from lorakit.errors import ModelError
from lorakit.planned import PlannedScheduler

# diffusers' EulerDiscreteScheduler makes a numpy array of a tensor in an old way
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
PREDICTIONS = ["epsilon", "v_prediction"]
SCALED = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
LINEAR = {"beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear"}
ALL = torch.arange(1000)


def made(config, **settings) -> Ddpm:
    return Ddpm(PlannedScheduler(name="ddpm", timesteps="uniform", **settings), None, config)


def draws(count=4):
    chance = torch.Generator().manual_seed(0)
    return (torch.randn(count, 4, 6, 8, generator=chance) for _ in range(2))


def close(found, wanted):
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-5)


def config_of(scheduler):
    return dict(scheduler.config)


@pytest.fixture(params=PREDICTIONS)
def prediction(request):
    return request.param


@pytest.fixture(params=[False, True], ids=["signal at the end", "zero terminal snr"])
def zero(request):
    return request.param


@pytest.fixture(params=[SCALED, LINEAR], ids=["scaled_linear", "linear"])
def reference(request, prediction, zero):
    return DDPMScheduler(**request.param, prediction_type=prediction, rescale_betas_zero_snr=zero)


# -- training ----------------------------------------------------------------------------------------------------


def test_mixing_and_target_equal_the_scheduler(reference, prediction):
    ours, (clean, noise) = made(config_of(reference)), draws()
    for t in ([0, 1, 500, 999], [3, 250, 700, 998]):
        t = torch.tensor(t)
        close(ours.mix(clean, noise, t), reference.add_noise(clean, noise, t))
        wanted = noise if prediction == "epsilon" else reference.get_velocity(clean, noise, t)
        close(ours.target(clean, noise, t), wanted)


def test_every_levels_share_of_the_picture_is_the_schedulers(reference, zero):
    kept = made(config_of(reference)).kept
    torch.testing.assert_close(kept, reference.alphas_cumprod, atol=1e-6, rtol=1e-5)
    assert (kept[-1] == 0) == zero


@pytest.mark.parametrize("gamma", [1.0, 5.0, 20.0])
def test_min_snr_weights_are_the_example_scripts(reference, prediction, gamma):
    """diffusers' examples/text_to_image/train_text_to_image_lora_sdxl.py, with --snr_gamma."""
    t = ALL[:-1]  # at zero terminal SNR the script divides nothing by nothing
    snr = compute_snr(reference, t)
    weights = torch.stack([snr, gamma * torch.ones_like(snr)], dim=1).min(dim=1)[0]
    weights = weights / snr if prediction == "epsilon" else weights / (snr + 1)
    torch.testing.assert_close(made(config_of(reference), min_snr_gamma=gamma).weight(t), weights, atol=1e-6, rtol=1e-4)


def test_weights_are_finite_at_the_last_level(reference, prediction, zero):
    (last,) = made(config_of(reference), min_snr_gamma=5.0).weight(torch.tensor([999])).tolist()
    assert last == pytest.approx(1.0 if prediction == "epsilon" else 0.0, abs=0.005)


def test_without_gamma_every_loss_counts_the_same(reference):
    assert torch.equal(made(config_of(reference)).weight(ALL), torch.ones(1000))


def test_levels_are_the_thousand_indices_each_as_likely():
    ours = made(SCALED)
    counts = torch.bincount(ours.level((torch.arange(100_000) + 0.5) / 100_000, 64), minlength=1000)
    assert counts.min() >= 99
    assert counts.max() <= 101
    assert ours.level(torch.tensor([0.0, 1.0]), 64).tolist() == [0, 999]


def test_noise_offset_is_common_to_a_channel():
    noise, offset = torch.randn(2, 4, 6, 8), torch.randn(2, 4, 1, 1)
    assert torch.equal(made(SCALED).noise(noise, offset), noise)
    shifted = made(SCALED, noise_offset=0.1).noise(noise, offset)
    torch.testing.assert_close(shifted, noise + 0.1 * offset)


# -- previews ----------------------------------------------------------------------------------------------------


def euler(spacing, prediction, zero, offset=1):
    return EulerDiscreteScheduler(
        **SCALED,
        prediction_type=prediction,
        rescale_betas_zero_snr=zero,
        timestep_spacing=spacing,
        steps_offset=offset,
        interpolation_type="linear",
    )


@pytest.mark.parametrize("steps", [2, 7, 30, 999, 1000])
@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
def test_times_and_first_noise_equal_the_sampler(spacing, prediction, zero, steps, offset):
    reference = euler(spacing, prediction, zero, offset)
    reference.set_timesteps(steps)
    ours = made(config_of(reference)).sampler(steps, 64)
    torch.testing.assert_close(ours.times, reference.timesteps.float(), atol=1e-3, rtol=1e-6)
    noise = torch.randn(1, 4, 6, 8)
    torch.testing.assert_close(ours.start(noise), noise * reference.init_noise_sigma, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("steps", [2, 7, 30])
@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
def test_a_walk_equals_the_samplers(spacing, prediction, zero, steps):
    """With a stand-in for the model that answers something of its input and of the time."""
    reference = euler(spacing, prediction, zero)
    reference.set_timesteps(steps)
    ours = made(config_of(reference)).sampler(steps, 64)
    noise = torch.randn(2, 4, 6, 8, generator=torch.Generator().manual_seed(1))

    def answer(seen, t):
        return torch.tanh(seen * 1.3 + t / 1000) + 0.1 * seen.roll(1, -1)

    mine, theirs = ours.start(noise), noise * reference.init_noise_sigma
    for number, t in enumerate(reference.timesteps):
        seen, wanted = ours.seen(mine, number), reference.scale_model_input(theirs, t)
        torch.testing.assert_close(seen, wanted, atol=1e-4, rtol=1e-4)
        mine = ours.step(mine, answer(seen, ours.times[number]), number)
        theirs = reference.step(answer(wanted, t), t, theirs).prev_sample
        torch.testing.assert_close(mine, theirs, atol=5e-4, rtol=1e-4)  # at zero terminal SNR sigma begins at 4096
    assert len(ours.times) == len(reference.timesteps)


def test_latents_keep_their_number_format():
    sampler, noise = made(SCALED).sampler(4, 64), torch.randn(1, 4, 2, 2).bfloat16()
    seen = sampler.seen(noise, 0)
    assert seen.dtype == sampler.step(noise, seen, 0).dtype == torch.bfloat16


# -- what the model itself says ----------------------------------------------------------------------------------


def test_the_models_own_prediction_is_taken(prediction):
    assert made({**SCALED, "prediction_type": prediction}).prediction == prediction
    assert made({**SCALED, "prediction_type": prediction}, prediction=prediction).prediction == prediction


@pytest.mark.parametrize(
    ("config", "settings", "says"),
    [
        ({"prediction_type": "epsilon"}, {"prediction": "v_prediction"}, "model predicts epsilon, and the settings"),
        ({"prediction_type": "v_prediction"}, {"prediction": "epsilon"}, "model predicts v_prediction"),
        ({"prediction_type": "sample"}, {}, "the model predicts 'sample'"),
        ({"beta_schedule": "squaredcos_cap_v2"}, {}, "beta_schedule 'squaredcos_cap_v2'"),
    ],
)
def test_a_model_of_another_kind_is_refused(config, settings, says):
    with pytest.raises(ModelError, match=says):
        made({**SCALED, **config}, **settings)


def test_a_scheduler_without_betas_is_another_objective():
    with pytest.raises(ModelError, match=r"scheduler is EDMEulerScheduler.*not trained with this objective"):
        made({"_class_name": "EDMEulerScheduler", "prediction_type": "epsilon", "sigma_data": 0.5})


def test_an_unknown_spacing_is_refused():
    with pytest.raises(ModelError, match="timestep_spacing 'karras'"):
        made({**SCALED, "timestep_spacing": "karras"}).sampler(4, 64)
