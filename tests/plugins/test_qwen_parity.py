"""What lorakit does with Qwen-Image equals what diffusers does: text, latents, levels, loss, pictures, files."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, QwenImageEditPlusPipeline, QwenImagePipeline
from diffusers.pipelines.qwenimage.pipeline_qwenimage import calculate_shift

from lorakit import FlowShift
from lorakit.control import Control
from lorakit.dataset import Dataset
from lorakit.engine import lora_file
from lorakit.engine.adapter import attach
from lorakit.engine.cache import Cache, write_atomically
from lorakit.engine.caching import Scene, Words, cache_text
from lorakit.engine.draws import draw
from lorakit.engine.loop import Trainer
from lorakit.engine.parts import Batch, Source, Text
from lorakit.engine.phases import Context
from lorakit.engine.preparing import Item
from lorakit.engine.preview import Painter, Subject, denoise, noise_for
from lorakit.engine.schedulers import FlowMatch
from lorakit.order import Turn
from lorakit.planned import PlannedScheduler
from lorakit_qwen.family import Qwen
from lorakit_qwen.model import TEMPLATES, QwenTextEncoder, pack, unpack
from tests.plugins.processor import load_processor

SHORT, LONG = "a red circle", "a large blue star on the left and a small green square at the bottom"
CPU = torch.device("cpu")
SIZES = [(64, 64), (80, 48), (48, 64)]  # width, height
TOLERANCE = 1e-4  # of latents, which are about 1


def farthest(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).abs().max())


def texts_of(encoder, *captions: str) -> Text:
    with torch.no_grad():
        return Text.collate(encoder.encode(captions))


# -- text --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("captions", [[SHORT], [SHORT, LONG], [LONG, "", " ", SHORT]])
def test_text_equals_encode_prompt(encoder, pipeline, captions):
    with torch.no_grad():
        hidden, mask = pipeline.encode_prompt(captions)
    text = texts_of(encoder, *captions)
    assert text.hidden.shape == hidden.shape
    assert farthest(text.hidden, hidden) < 1e-5
    if mask is None:
        assert text.mask is None
    else:
        assert torch.equal(text.mask, mask.bool())


def test_cached_text_equals_encode_prompt(kit, make_plan, source, pipeline, tmp_path):
    plan = make_plan(sampling={"prompts": [SHORT, LONG]})
    cache = Cache(tmp_path)
    context = Context(plan, kit.shelves.families["qwen"], kit.shelves, source, cache, CPU, Control())
    store = drained(cache_text(context, Dataset(), [Scene(SHORT), Scene(LONG)]))
    for caption in (SHORT, LONG):
        with torch.no_grad():
            hidden, mask = pipeline.encode_prompt(caption)
        assert mask is None
        assert farthest(store[Words(caption)].hidden, hidden) < 1e-5


def drained(work):
    """The answer of a phase, its events dropped."""
    while True:
        try:
            next(work)
        except StopIteration as end:
            return end.value


@pytest.fixture(scope="module")
def edit_source(kit, tmp_path_factory):
    folder = tmp_path_factory.mktemp("qwen-edit-toy")
    kit.shelves.families["qwen"].toy(folder, "edit-2509")
    return Source(folder, "the edit toy", torch.float32)


@pytest.fixture(scope="module")
def edit_pipeline(edit_source):
    processor = load_processor(edit_source)  # diffusers' own way of loading it needs torchvision
    return QwenImageEditPlusPipeline.from_pretrained(edit_source.folder, processor=processor, dtype=torch.float32)


# the pipeline's own call of its processor; transformers' defaults for it name a length without cutting to it
@pytest.mark.filterwarnings("ignore:`max_length` is ignored when `padding`=`True`:UserWarning")
def test_edit_text_without_references_equals_the_edit_plus_pipeline(make_plan, edit_source, edit_pipeline):
    plan = make_plan(variant="edit-2509")
    assert plan.settings.text_encoder.template == "edit"
    encoder = QwenTextEncoder(plan, edit_source)
    for captions in ([SHORT], [SHORT, LONG]):
        with torch.no_grad():
            hidden, _ = edit_pipeline.encode_prompt(captions)
        assert farthest(texts_of(encoder, *captions).hidden, hidden) < 1e-5


def test_templates_are_the_pipelines(pipeline, edit_pipeline):
    for name, made in (("text-to-image", pipeline), ("edit", edit_pipeline)):
        assert tuple(TEMPLATES[name].values()) == (made.prompt_template_encode, made.prompt_template_encode_start_idx)


# -- latents -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("height", "width"), [(8, 8), (6, 10), (12, 4)])
def test_packing_equals_the_pipelines(height, width):
    latents = torch.randn(2, 16, height, width)
    tokens = QwenImagePipeline._pack_latents(latents, 2, 16, height, width)
    assert torch.equal(pack(latents), tokens)
    back = QwenImagePipeline._unpack_latents(tokens, 8 * height, 8 * width, 8)[:, :, 0]
    assert torch.equal(unpack(tokens, height, width), back)
    assert torch.equal(back, latents)


def picture(width: int, height: int) -> torch.Tensor:
    """A red bar on the left and a blue one at the bottom, on grey: unlike any of its flips and turns."""
    pixels = torch.full((1, 3, height, width), -0.6)
    pixels[:, :, :, : width // 4] = torch.tensor([0.8, -0.8, -0.8]).view(1, 3, 1, 1)
    pixels[:, :, -height // 4 :, width // 4 :] = torch.tensor([-0.7, -0.4, 0.8]).view(1, 3, 1, 1)
    return pixels


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_latents_equal_the_vae_under_the_pipelines_scaling(coder, pipeline, width, height):
    pixels = torch.cat([picture(width, height), picture(width, height).flip(-1)])
    vae = pipeline.vae
    mean, std = (torch.tensor(one).view(1, -1, 1, 1) for one in (vae.config.latents_mean, vae.config.latents_std))
    with torch.no_grad():
        expected = (vae.encode(pixels[:, :, None]).latent_dist.mode()[:, :, 0] - mean) / std
        latents = coder.encode(pixels)
        decoded = vae.decode((latents * std + mean)[:, :, None]).sample[:, :, 0]
        assert latents.shape == (2, 16, height // coder.scale, width // coder.scale)
        assert farthest(latents, expected) < 1e-5
        assert farthest(coder.decode(latents), decoded) < 1e-5


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_decoding_gives_the_picture_back_the_right_way_round(coder, width, height):
    pixels = picture(width, height)
    with torch.no_grad():
        back = coder.decode(coder.encode(pixels))
    lost = (back - pixels).abs().mean()
    assert lost < 0.15
    for turned in (pixels.flip(-1), pixels.flip(-2), pixels.flip(1)):
        assert (back - turned).abs().mean() > 2 * lost


# -- noise levels ------------------------------------------------------------------------------------------------


def flow_match(timesteps: str, formula: FlowShift | None = Qwen.variants["image"].flow_shift, **options) -> FlowMatch:
    return FlowMatch(PlannedScheduler(name="flowmatch", timesteps=timesteps, **options), formula, {})


@pytest.mark.parametrize("tokens", [16, 60, 256, 4096, 6032, 6889])
@pytest.mark.parametrize("steps", [2, 5, 28, 50])
def test_sampling_levels_equal_the_scheduler(toy, tokens, steps):
    scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(toy, subfolder="scheduler")
    mu = calculate_shift(tokens, 256, 8192, 0.5, 0.9)
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=mu)
    levels = flow_match("sigmoid").levels(steps, tokens)
    assert levels.shape == (steps + 1,)
    assert farthest(levels, scheduler.sigmas) < 1e-6


@pytest.mark.parametrize("shift", [1.0, 1.73, 3.0])
@pytest.mark.parametrize("steps", [2, 5, 28])
def test_sampling_levels_of_a_fixed_shift_equal_the_scheduler(shift, steps):
    """For families of plugin authors: Stable Diffusion 3 and AuraFlow have one shift for every size."""
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(steps)
    levels = flow_match("sigmoid", FlowShift.fixed(shift)).levels(steps, 777)
    assert farthest(levels, scheduler.sigmas) < 1e-6
    assert FlowShift.fixed(shift).at(16) == pytest.approx(FlowShift.fixed(shift).at(9999)) == pytest.approx(shift)


def test_the_toy_has_the_familys_shift(toy):
    config = json.loads((toy / "scheduler" / "scheduler_config.json").read_text())
    assert config["use_dynamic_shifting"]
    assert config["time_shift_type"] == "exponential"
    assert Qwen.variants["image"].flow_shift == FlowShift(
        base_tokens=config["base_image_seq_len"],
        base_shift=config["base_shift"],
        max_tokens=config["max_image_seq_len"],
        max_shift=config["max_shift"],
        terminal=config["shift_terminal"],
    )


FLUX = FlowShift(base_tokens=256, base_shift=0.5, max_tokens=4096, max_shift=1.15)


@pytest.mark.parametrize(
    ("scheduler", "tokens", "golden"),
    [
        (flow_match("shift"), 4096, (0.357093, 0.666756, 0.878158)),  # 1024 x 1024
        (flow_match("shift"), 6889, (0.390020, 0.697269, 0.892437)),  # 1328 x 1328
        (flow_match("shift", FLUX), 4096, (0.467159, 0.759511, 0.919202)),
        (flow_match("shift", shift=2.2), 4096, (0.379165, 0.6875, 0.887954)),
        (flow_match("sigmoid"), 4096, (0.217286, 0.5, 0.782714)),
    ],
    ids=["qwen-1024", "qwen-1328", "flux-1024", "shift-2.2", "sigmoid"],
)
def test_training_levels_are_the_fields(scheduler, tokens, golden):
    found = scheduler.level(torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64), tokens)
    assert found.tolist() == pytest.approx(golden, abs=1e-6)


# -- previews ----------------------------------------------------------------------------------------------------


def painter_for(plan, denoiser, coder, encoder) -> Painter:
    sampling = plan.settings.sampling
    negative = texts_of(encoder, " ")
    subjects = [Subject(texts_of(encoder, prompt), negative) for prompt in sampling.prompts]
    return Painter(Qwen(), Qwen.variants["image"], sampling, denoiser, coder, flow_match("sigmoid"), subjects)


def pipeline_draws(pipeline, noise, sampling, **options):
    guided = {"negative_prompt": [sampling.negative] * len(noise)} if sampling.guidance > 1 else {}
    return pipeline(
        prompt=list(sampling.prompts),
        latents=pack(noise),
        width=sampling.width,
        height=sampling.height,
        num_inference_steps=sampling.steps,
        true_cfg_scale=sampling.guidance,
        **guided,
        **options,
    ).images


def sampling(width: int, height: int, guidance: float, *prompts: str) -> dict:
    return {"prompts": prompts, "width": width, "height": height, "guidance": guidance, "steps": 6, "seed": 3}


def pixels_apart(one, other) -> int:
    return int(np.abs(np.asarray(one, dtype=int) - np.asarray(other, dtype=int)).max())


@pytest.mark.parametrize("guidance", [1.0, 3.5])
@pytest.mark.parametrize(("width", "height"), SIZES)
def test_preview_equals_the_pipelines_picture(make_plan, denoiser, coder, encoder, pipeline, width, height, guidance):
    plan = make_plan(sampling=sampling(width, height, guidance, SHORT))
    drawn = painter_for(plan, denoiser, coder, encoder).draw(0, CPU, torch.float32)
    expected = pipeline_draws(pipeline, noise_for(plan.settings.sampling, coder), plan.settings.sampling)
    assert drawn.size == (width, height)
    assert pixels_apart(drawn, expected[0]) <= 1


@pytest.mark.parametrize("guidance", [1.0, 3.5])
@pytest.mark.parametrize(("width", "height"), SIZES)
def test_latents_of_two_unequal_captions_equal_the_pipelines(
    make_plan, denoiser, encoder, coder, pipeline, width, height, guidance
):
    settings = make_plan(sampling=sampling(width, height, guidance, SHORT, LONG)).settings.sampling
    noise = torch.cat([noise_for(settings, coder, number) for number in range(2)])
    text, negative = texts_of(encoder, SHORT, LONG), texts_of(encoder, " ", " ")
    tokens = noise.shape[-1] * noise.shape[-2] // 4
    latents = denoise(denoiser, flow_match("sigmoid"), noise, Batch(text), Batch(negative), settings, tokens)
    expected = pipeline_draws(pipeline, noise, settings, output_type="latent")
    assert farthest(pack(latents), expected) < TOLERANCE


# -- loss --------------------------------------------------------------------------------------------------------


@pytest.fixture
def trainer(make_plan, denoiser):
    plan = make_plan(scheduler={"timesteps": "sigmoid"}, train={"caption_dropout": 0.0}, seed=5)
    adapter = attach(denoiser, plan.settings.lora, 5, CPU)
    adapter.flat.data.normal_(std=0.05, generator=torch.Generator().manual_seed(1))
    return Trainer(plan, denoiser, adapter, flow_match("sigmoid"), None, 2, torch.float32)


@pytest.fixture(scope="session")
def samples(encoder, coder):
    """Two pictures of 80 x 48 with a short and a long caption."""
    pixels = torch.cat([picture(80, 48), picture(80, 48).flip(-1)])
    with torch.no_grad():
        latents = coder.encode(pixels)
    texts = [texts_of(encoder, caption) for caption in (SHORT, LONG)]
    return [Item(*one) for one in zip(latents, texts, strict=True)].__getitem__


def test_loss_equals_the_example_scripts(trainer, samples, pipeline):
    """diffusers' examples/dreambooth/train_dreambooth_lora_qwen_image.py, from its latents on."""
    trainer.adapter.flat.data.zero_()  # the script's model is the plain one, or has an untrained adapter
    ours = trainer.loss(Turn((0, 1), 7, 0), samples)

    draws = [draw(5, number, (16, 12, 20)) for number in (7, 8)]
    model_input = torch.stack([samples(number).latents for number in (0, 1)])[:, :, None]
    noise = torch.stack([one.noise for one in draws])[:, :, None]
    sigmas = torch.stack([one.level for one in draws])
    sigmas = torch.sigmoid(torch.special.ndtri(sigmas)).view(2, 1, 1, 1, 1)
    timesteps = sigmas.flatten() * 1000
    with torch.no_grad():
        hidden, mask = pipeline.encode_prompt([SHORT, LONG])
        noisy = (1.0 - sigmas) * model_input + sigmas * noise
        prediction = pipeline.transformer(
            hidden_states=QwenImagePipeline._pack_latents(noisy.permute(0, 2, 1, 3, 4), 2, 16, 12, 20),
            encoder_hidden_states=hidden,
            encoder_hidden_states_mask=mask,
            timestep=timesteps / 1000,
            img_shapes=[(1, 6, 10)] * 2,
            return_dict=False,
        )[0]
    prediction = QwenImagePipeline._unpack_latents(prediction, 48, 80, 4)
    target = noise - model_input
    expected = torch.mean(((prediction.float() - target.float()) ** 2).reshape(2, -1), 1)

    assert ours.tolist() == pytest.approx(expected.tolist(), rel=1e-5)
    assert float(ours.detach().mean()) == pytest.approx(float(expected.mean()), rel=1e-5)


def test_a_padded_batchs_loss_is_its_items(trainer, samples):
    together = trainer.loss(Turn((0, 1), 3, 0), samples)
    alone = torch.cat([trainer.loss(Turn((index,), 3 + index, 0), samples) for index in (0, 1)])
    assert together.tolist() == pytest.approx(alone.tolist(), rel=1e-5)


def test_padding_would_show_without_the_mask(denoiser, samples, encoder):
    """That the test above can fail: the same padded text, its padding taken for words, gives another prediction."""
    noisy, t = torch.randn(2, 16, 12, 20), torch.full((2,), 0.5)
    text = texts_of(encoder, SHORT, LONG)
    longest = text.hidden.shape[1]
    with torch.no_grad():
        masked = denoiser.predict(noisy, t, Batch(text))
        bare = denoiser.predict(noisy, t, Batch(Text(text.hidden, (longest, longest))))
    assert farthest(masked[0], bare[0]) > 1e-3
    assert farthest(masked[1], bare[1]) < 1e-5


# -- files -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [2.0, 4.0, 8.0], ids=["half", "rank", "double"])
def test_a_saved_lora_draws_the_same_in_the_pipeline(
    make_plan, denoiser, coder, encoder, pipeline, fresh_pipeline, tmp_path, alpha
):
    settings = sampling(80, 48, 3.5, SHORT)
    plan = make_plan(lora={"alpha": alpha}, sampling=settings, save={"dtype": "fp32"})
    adapter = attach(denoiser, plan.settings.lora, 0, CPU)
    adapter.flat.data.normal_(std=0.08, generator=torch.Generator().manual_seed(2))
    ours = painter_for(plan, denoiser, coder, encoder).draw(0, CPU, torch.float32)

    write_atomically(tmp_path / "x.safetensors", lora_file.encode(plan, Qwen(), adapter, Dataset(), 1))
    fresh_pipeline.load_lora_weights(str(tmp_path), weight_name="x.safetensors")
    noise = noise_for(plan.settings.sampling, coder)
    theirs = pipeline_draws(fresh_pipeline, noise, plan.settings.sampling)[0]
    base = pipeline_draws(pipeline, noise, plan.settings.sampling)[0]
    assert pixels_apart(ours, theirs) <= 1
    assert pixels_apart(ours, base) > 10  # or the comparison says nothing


def test_diffusers_loads_the_toy_unchanged(pipeline):
    kinds = {name: type(part).__name__ for name, part in pipeline.components.items()}
    assert kinds == {
        "scheduler": "FlowMatchEulerDiscreteScheduler",
        "text_encoder": "Qwen2_5_VLForConditionalGeneration",
        "tokenizer": "Qwen2Tokenizer",
        "transformer": "QwenImageTransformer2DModel",
        "vae": "AutoencoderKLQwenImage",
    }


def test_braces_in_a_caption_are_letters(encoder):
    assert texts_of(encoder, "a {red} circle {}").lengths[0] > texts_of(encoder, "a red circle").lengths[0]
