"""What lorakit does with SDXL equals what diffusers does: text, latents, sizes, prediction, loss, pictures, files."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.training_utils import compute_snr

from lorakit.dataset import Dataset, index
from lorakit.engine import lora_file
from lorakit.engine.adapter import attach
from lorakit.engine.cache import write_atomically
from lorakit.engine.ddpm import Ddpm
from lorakit.engine.draws import draw
from lorakit.engine.loop import Trainer
from lorakit.engine.parts import Batch
from lorakit.engine.preparing import Item
from lorakit.engine.preview import Painter, Subject, denoise, noise_for
from lorakit.engine.source import scheduler_config
from lorakit.order import Turn
from lorakit_sdxl.family import Sdxl
from tests.plugins.sdxl.conftest import LONG, SHORT, farthest, texts_of

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
CPU = torch.device("cpu")
SIZES = [(48, 48), (64, 32), (32, 64)]  # width, height
VERY_LONG = " ".join(["a large blue star on the left"] * 20)


# -- text --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("captions", [[SHORT], [SHORT, LONG], [LONG, "", " ", SHORT], [VERY_LONG]])
def test_text_and_pooled_equal_encode_prompt(encoder, pipeline, captions):
    with torch.no_grad():
        hidden, _, pooled, _ = pipeline.encode_prompt(captions, do_classifier_free_guidance=False)
    text = texts_of(encoder, *captions)
    assert text.hidden.shape == (len(captions), 77, 80)
    assert farthest(text.hidden, hidden) < 1e-5
    assert farthest(text.pooled, pooled) < 1e-5
    assert text.mask is None


def test_captions_differ_in_both_encoders_and_in_the_pooled_state(encoder):
    text = texts_of(encoder, "a red circle", "a blue circle")
    for part in (text.hidden[..., :32], text.hidden[..., 32:], text.pooled):
        assert farthest(part[0], part[1]) > 1e-3


# -- latents -----------------------------------------------------------------------------------------------------


def picture(width: int, height: int) -> torch.Tensor:
    """A red bar on the left and a blue one at the bottom, on grey: unlike any of its flips and turns."""
    pixels = torch.full((1, 3, height, width), -0.6)
    pixels[:, :, :, : width // 4] = torch.tensor([0.8, -0.8, -0.8]).view(1, 3, 1, 1)
    pixels[:, :, -height // 4 :, width // 4 :] = torch.tensor([-0.7, -0.4, 0.8]).view(1, 3, 1, 1)
    return pixels


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_latents_equal_the_vae_under_the_pipelines_scaling(coder, pipeline, width, height):
    pixels = torch.cat([picture(width, height), picture(width, height).flip(-1)])
    vae, factor = pipeline.vae, pipeline.vae.config.scaling_factor
    with torch.no_grad():
        expected = vae.encode(pixels).latent_dist.mode() * factor
        latents = coder.encode(pixels)
        assert latents.shape == (2, coder.channels, height // coder.scale, width // coder.scale)
        assert farthest(latents, expected) < 1e-5
        assert farthest(coder.decode(latents), vae.decode(expected / factor).sample) < 1e-5
    assert factor != 1  # or the comparison says nothing
    assert next(coder.module.parameters()).dtype == torch.float32


# -- sizes and one prediction ------------------------------------------------------------------------------------


def test_sizes_of_a_picture_are_the_pipelines_time_ids(make_plan, pipeline, pictures):
    """As diffusers' train_dreambooth_lora_sdxl.py has them: the size before resizing, the crop after it."""
    plan = make_plan(trigger="sks", data=[{"folder": str(pictures)}])
    samples = index(plan.settings.data, Sdxl().planned_sizing(plan.settings)).samples
    told = [sample.framed.sizes for sample in samples]
    assert told[1] == (96, 100, 0, 1, 48, 48)
    assert told[2][:2] == (40, 96)
    for sample, sizes in zip(samples, told, strict=True):
        fit = sample.fit
        expected = pipeline._get_add_time_ids(
            (sample.size.height, sample.size.width), (fit.top, fit.left), (fit.shape.height, fit.shape.width),
            torch.float32, text_encoder_projection_dim=48,
        )  # fmt: skip
        assert expected.tolist() == [list(sizes)]


def test_one_prediction_equals_the_unets(denoiser, encoder, pipeline):
    chance = torch.Generator().manual_seed(0)
    noisy = torch.randn(2, denoiser.module.config.in_channels, 8, 16, generator=chance)
    t, sizes = torch.tensor([17, 803]), torch.tensor([[96, 100, 0, 4, 32, 64], [32, 64, 0, 0, 32, 64]])
    text = texts_of(encoder, SHORT, LONG)
    with torch.no_grad():
        hidden, _, pooled, _ = pipeline.encode_prompt([SHORT, LONG], do_classifier_free_guidance=False)
        told = {"text_embeds": pooled, "time_ids": sizes.float()}
        expected = pipeline.unet(noisy, t, hidden, added_cond_kwargs=told).sample
        found = denoiser.predict(noisy, t, Batch(text, sizes=sizes))
        other = denoiser.predict(noisy, t, Batch(text, sizes=sizes + 8))
    assert farthest(found, expected) < 1e-5
    assert farthest(found, other) > 1e-4  # or the sizes are not told


# -- previews ----------------------------------------------------------------------------------------------------


def ddpm(plan, source) -> Ddpm:
    return Ddpm(plan.settings.scheduler, None, scheduler_config(source))


def painter_for(plan, source, denoiser, coder, encoder) -> Painter:
    sampling = plan.settings.sampling
    negative = texts_of(encoder, sampling.negative)
    subjects = [Subject(texts_of(encoder, prompt), negative) for prompt in sampling.prompts]
    return Painter(Sdxl(), Sdxl.variants["base"], sampling, denoiser, coder, ddpm(plan, source), subjects)


def pipeline_draws(pipeline, noise, sampling, **options):
    guided = {"negative_prompt": [sampling.negative] * len(noise)} if sampling.guidance > 1 else {}
    return pipeline(
        prompt=list(sampling.prompts),
        latents=noise,
        width=sampling.width,
        height=sampling.height,
        num_inference_steps=sampling.steps,
        guidance_scale=sampling.guidance,
        **guided,
        **options,
    ).images


def sampling(width: int, height: int, guidance: float, *prompts: str) -> dict:
    return {"prompts": prompts, "width": width, "height": height, "guidance": guidance, "steps": 6, "seed": 3}


def pixels_apart(one, other) -> int:
    return int(np.abs(np.asarray(one, dtype=int) - np.asarray(other, dtype=int)).max())


@pytest.mark.parametrize("guidance", [1.0, 7.0])
@pytest.mark.parametrize(("width", "height"), SIZES)
def test_preview_equals_the_pipelines_picture(
    make_plan, source, denoiser, coder, encoder, pipeline, width, height, guidance
):
    plan = make_plan(sampling=sampling(width, height, guidance, SHORT))
    drawn = painter_for(plan, source, denoiser, coder, encoder).draw(0, CPU, torch.float32)
    expected = pipeline_draws(pipeline, noise_for(plan.settings.sampling, coder), plan.settings.sampling)
    assert drawn.size == (width, height)
    assert pixels_apart(drawn, expected[0]) <= 1


@pytest.mark.parametrize("guidance", [1.0, 7.0])
@pytest.mark.parametrize(("width", "height"), SIZES[:2])
def test_latents_of_two_captions_equal_the_pipelines(
    make_plan, source, denoiser, encoder, coder, pipeline, width, height, guidance
):
    plan = make_plan(sampling=sampling(width, height, guidance, SHORT, LONG))
    settings = plan.settings.sampling
    noise = torch.cat([noise_for(settings, coder, number) for number in range(2)])
    sizes = torch.tensor([[height, width, 0, 0, height, width]] * 2)
    about, negative = (Batch(texts_of(encoder, *some), sizes=sizes) for some in ((SHORT, LONG), (" ", " ")))
    latents = denoise(denoiser, ddpm(plan, source), noise, about, negative, settings, 36)
    expected = pipeline_draws(pipeline, noise, settings, output_type="latent")
    assert farthest(latents, expected) < 1e-3 * float(expected.abs().max())


# -- loss --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def samples(encoder, coder):
    """Two pictures of 64 x 32 with their texts and sizes."""
    pixels = torch.cat([picture(64, 32), picture(64, 32).flip(-1)])
    with torch.no_grad():
        latents = coder.encode(pixels)
    sizes = [(80, 160, 0, 4, 32, 64), (32, 64, 0, 0, 32, 64)]
    texts = [texts_of(encoder, caption) for caption in (SHORT, LONG)]
    return [Item(*one[:2], sizes=one[2]) for one in zip(latents, texts, sizes, strict=True)].__getitem__


@pytest.mark.parametrize("gamma", [None, 5.0], ids=["plain", "min-snr"])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_loss_equals_the_example_scripts(make_plan, denoiser, samples, pipeline, source, prediction, gamma):
    """diffusers' train_text_to_image_lora_sdxl.py and train_dreambooth_lora_sdxl.py, from their latents on."""
    plan = make_plan(scheduler={"min_snr_gamma": gamma} if gamma else {}, seed=5)
    config = {**scheduler_config(source), "prediction_type": prediction}
    adapter = attach(denoiser, plan.settings.lora, 5, CPU)  # which adds nothing yet
    scheduler = Ddpm(plan.settings.scheduler, None, config)
    ours = Trainer(plan, denoiser, adapter, scheduler, None, 1, torch.float32).loss(Turn((0, 1), 7, 0), samples)

    model_input = torch.stack([samples(number).latents for number in (0, 1)])
    draws = [draw(5, number, tuple(model_input.shape[1:])) for number in (7, 8)]
    noise = torch.stack([one.noise for one in draws])
    timesteps = (torch.stack([one.level for one in draws]) * 1000).long()
    noise_scheduler = DDPMScheduler.from_config(config)
    with torch.no_grad():
        noisy_model_input = noise_scheduler.add_noise(model_input, noise, timesteps)
        prompt_embeds, _, pooled, _ = pipeline.encode_prompt([SHORT, LONG], do_classifier_free_guidance=False)
        unet_added_conditions = {"time_ids": torch.tensor([samples(n).sizes for n in (0, 1)]), "text_embeds": pooled}
        model_pred = pipeline.unet(
            noisy_model_input, timesteps, prompt_embeds, added_cond_kwargs=unet_added_conditions
        ).sample
    target = noise if prediction == "epsilon" else noise_scheduler.get_velocity(model_input, noise, timesteps)
    loss = torch.nn.functional.mse_loss(model_pred.float(), target.float(), reduction="none").mean((1, 2, 3))
    if gamma:
        snr = compute_snr(noise_scheduler, timesteps)
        mse_loss_weights = torch.stack([snr, gamma * torch.ones_like(timesteps)], dim=1).min(dim=1)[0]
        loss = loss * mse_loss_weights / (snr if prediction == "epsilon" else snr + 1)
        assert (mse_loss_weights < snr).any()  # or the weight would be 1 throughout
    assert ours.tolist() == pytest.approx(loss.tolist(), rel=1e-5)


def test_a_batchs_loss_is_its_items(make_plan, denoiser, samples, source):
    plan = make_plan(seed=5)
    adapter = attach(denoiser, plan.settings.lora, 5, CPU)
    adapter.flat.data.normal_(std=0.05, generator=torch.Generator().manual_seed(1))
    trainer = Trainer(plan, denoiser, adapter, ddpm(plan, source), None, 1, torch.float32)
    together = trainer.loss(Turn((0, 1), 3, 0), samples)
    alone = torch.cat([trainer.loss(Turn((index,), 3 + index, 0), samples) for index in (0, 1)])
    assert together.tolist() == pytest.approx(alone.tolist(), rel=1e-4)


# -- files -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [2.0, 4.0, 8.0], ids=["half", "rank", "double"])
def test_a_saved_lora_draws_the_same_in_the_pipeline(
    make_plan, source, denoiser, coder, encoder, pipeline, fresh_pipeline, tmp_path, alpha
):
    plan = make_plan(lora={"alpha": alpha}, sampling=sampling(64, 32, 5.0, SHORT))
    adapter = attach(denoiser, plan.settings.lora, 0, CPU)
    adapter.flat.data.normal_(std=0.15, generator=torch.Generator().manual_seed(2))
    ours = painter_for(plan, source, denoiser, coder, encoder).draw(0, CPU, torch.float32)

    write_atomically(tmp_path / "x.safetensors", lora_file.encode(plan, Sdxl(), adapter, Dataset(), 1))
    fresh_pipeline.load_lora_weights(str(tmp_path), weight_name="x.safetensors")
    noise = noise_for(plan.settings.sampling, coder)
    theirs = pipeline_draws(fresh_pipeline, noise, plan.settings.sampling)[0]
    base = pipeline_draws(pipeline, noise, plan.settings.sampling)[0]
    assert pixels_apart(ours, theirs) <= 1
    assert pixels_apart(ours, base) > 10  # or the comparison says nothing


def test_diffusers_loads_the_toy_unchanged(pipeline):
    kinds = {name: type(part).__name__ for name, part in pipeline.components.items() if part is not None}
    assert kinds == {
        "scheduler": "EulerDiscreteScheduler",
        "text_encoder": "CLIPTextModel",
        "text_encoder_2": "CLIPTextModelWithProjection",
        "tokenizer": "CLIPTokenizer",
        "tokenizer_2": "CLIPTokenizer",
        "unet": "UNet2DConditionModel",
        "vae": "AutoencoderKL",
    }
