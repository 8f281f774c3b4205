"""What lorakit does with FLUX.1 equals what diffusers does: text, latents, levels, loss, pictures, files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxKontextPipeline, FluxPipeline
from diffusers.image_processor import VaeImageProcessor
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from diffusers.pipelines.flux.pipeline_flux_kontext import PREFERRED_KONTEXT_RESOLUTIONS
from PIL import Image

from lorakit.buckets import Shape
from lorakit.control import Control
from lorakit.dataset import Dataset
from lorakit.engine import lora_file
from lorakit.engine.adapter import attach
from lorakit.engine.cache import Cache, write_atomically
from lorakit.engine.draws import draw
from lorakit.engine.loading import text_hosts
from lorakit.engine.loop import Trainer
from lorakit.engine.material import gather
from lorakit.engine.parts import Batch, Source, Text
from lorakit.engine.phases import Context
from lorakit.engine.preparing import Item
from lorakit.engine.preview import Painter, Subject, denoise, noise_for
from lorakit.engine.schedulers import FlowMatch
from lorakit.engine.tokens import pack, unpack
from lorakit.errors import ModelError
from lorakit.order import Turn
from lorakit.planned import PlannedScheduler
from lorakit_flux.family import PREFERRED, Flux
from lorakit_flux.model import FluxDenoiser, FluxImageCoder, FluxTextEncoder

SHORT, LONG = "a red circle", "a large blue star on the left and a small green square at the bottom"
ENDLESS = " ".join(["sks"] * 600)
CPU = torch.device("cpu")
SIZES = [(48, 48), (64, 32)]  # width, height
ENCODED = 64  # what stands here for the 1024 of references
TOLERANCE = 1e-4  # of latents, which are about 1
FAMILY = Flux()


def farthest(one: torch.Tensor, other: torch.Tensor) -> float:
    assert one.shape == other.shape
    return float((one - other).abs().max())


def pixels_apart(one, other) -> int:
    return int(np.abs(np.asarray(one, dtype=int) - np.asarray(other, dtype=int)).max())


def drained(work):
    """The answer of a phase, its events dropped."""
    while True:
        try:
            next(work)
        except StopIteration as end:
            return end.value


# -- both sides of the comparison --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sources(kit, tmp_path_factory) -> dict[str, Source]:
    found = {}
    for variant in Flux.variants:
        folder = tmp_path_factory.mktemp(variant)
        kit.shelves.families["flux"].toy(folder, variant)
        found[variant] = Source(folder, f"the toy of {variant}", torch.float32)
    return found


def load(source: Source, kind: Any = FluxPipeline):
    made = kind.from_pretrained(source.folder, dtype=torch.float32)
    made.set_progress_bar_config(disable=True)
    return made


@pytest.fixture(scope="module")
def pipelines(sources):
    kinds = {"dev": FluxPipeline, "schnell": FluxPipeline, "kontext": FluxKontextPipeline}
    return {variant: load(source, kinds[variant]) for variant, source in sources.items()}


@pytest.fixture(scope="module")
def plan_of(kit, sources):
    def make(variant: str = "dev", **tables: Any):
        train = {"resolution": 48, "precision": "fp32", **tables.pop("train", {})}
        lora = {"rank": 4, **tables.pop("lora", {})}
        source = {"source": str(sources[variant].folder)}
        rest = {"preset": "none", "model": source, "quantization": {"name": "none"}, **tables}
        return kit.plan({"family": "flux", "variant": variant, "train": train, "lora": lora, **rest})

    return make


@pytest.fixture(scope="module")
def encoders(plan_of, sources):
    made = {variant: FluxTextEncoder(plan_of(variant), source) for variant, source in sources.items()}
    for one in made.values():
        one.module.requires_grad_(False).eval()
    return made


@pytest.fixture(scope="module")
def coder(sources) -> FluxImageCoder:
    made = FluxImageCoder(sources["dev"])
    made.module.requires_grad_(False).eval()
    return made


@pytest.fixture
def denoisers(sources):
    def make(variant: str) -> FluxDenoiser:
        made = FluxDenoiser(sources[variant], Flux.variants[variant].guidance == "embedded")
        made.module.requires_grad_(False).eval()
        return made

    return make


def texts_of(encoder, *captions: str) -> Text:
    with torch.no_grad():
        return Text.collate(encoder.encode(captions))


def flow_match(variant: str) -> FlowMatch:
    return FlowMatch(PlannedScheduler(name="flowmatch", timesteps="sigmoid"), Flux.variants[variant].flow_shift, {})


def tokens_of(noise: torch.Tensor) -> int:
    return noise.shape[-1] * noise.shape[-2] // 4


# -- text --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("variant", "longest"), [("dev", 512), ("schnell", 256), ("kontext", 512)])
def test_text_equals_encode_prompt(encoders, pipelines, variant, longest):
    captions = [SHORT, LONG, "", ENDLESS]
    with torch.no_grad():
        hidden, pooled, _ = pipelines[variant].encode_prompt(captions, captions, max_sequence_length=longest)
    text = texts_of(encoders[variant], *captions)
    assert text.hidden.shape[1] == longest
    assert farthest(text.hidden, hidden) < 1e-5
    assert farthest(text.pooled, pooled) < 1e-5
    assert text.mask is None  # the model has always seen the padding
    assert farthest(text.pooled[:1], text.pooled[1:2]) > 1e-2  # or the comparison says nothing


def test_a_captions_text_does_not_depend_on_its_neighbours(encoders):
    together = texts_of(encoders["dev"], LONG, SHORT, ENDLESS)
    alone = texts_of(encoders["dev"], SHORT)
    assert farthest(together.hidden[1:2], alone.hidden) < 1e-5
    assert farthest(together.pooled[1:2], alone.pooled) < 1e-5


def test_only_clip_lets_gradients_through(plan_of, sources):
    encoder = FluxTextEncoder(plan_of(), sources["dev"])
    (text,) = encoder.encode([SHORT])
    assert text.pooled.requires_grad
    assert not text.hidden.requires_grad


# -- latents -----------------------------------------------------------------------------------------------------


def picture(width: int, height: int) -> torch.Tensor:
    """A red bar on the left and a blue one at the bottom, on grey: unlike any of its flips and turns."""
    pixels = torch.full((1, 3, height, width), -0.6)
    pixels[:, :, :, : width // 4] = torch.tensor([0.8, -0.8, -0.8]).view(1, 3, 1, 1)
    pixels[:, :, -height // 4 :, width // 4 :] = torch.tensor([-0.7, -0.4, 0.8]).view(1, 3, 1, 1)
    return pixels


@pytest.mark.parametrize(("height", "width"), [(8, 8), (6, 10), (12, 4)])
def test_packing_equals_the_pipelines(height, width):
    latents = torch.randn(2, 16, height, width)
    tokens = FluxPipeline._pack_latents(latents, 2, 16, height, width)
    assert torch.equal(pack(latents), tokens)
    assert torch.equal(unpack(tokens, height, width), latents)


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_latents_equal_the_vae_under_the_pipelines_scaling(coder, pipelines, width, height):
    pixels = torch.cat([picture(width, height), picture(width, height).flip(-1)])
    pipeline = pipelines["kontext"]
    vae = pipeline.vae
    with torch.no_grad():
        expected = pipeline._encode_vae_image(pixels, None)
        latents = coder.encode(pixels)
        decoded = vae.decode(latents / vae.config.scaling_factor + vae.config.shift_factor).sample
        assert latents.shape == (2, 16, height // coder.scale, width // coder.scale)
        assert farthest(latents, expected) < 1e-5
        assert farthest(coder.decode(latents), decoded) < 1e-5


# -- noise levels ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", Flux.variants)
@pytest.mark.parametrize("tokens", [36, 256, 4096])
@pytest.mark.parametrize("steps", [1, 4, 28])
def test_sampling_levels_equal_the_scheduler(sources, variant, tokens, steps):
    scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(sources[variant].folder, subfolder="scheduler")
    assert scheduler.config.use_dynamic_shifting == (variant != "schnell")
    mu = calculate_shift(tokens, 256, 4096, 0.5, 1.15)
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=mu)
    assert farthest(flow_match(variant).levels(steps, tokens), scheduler.sigmas) < 1e-6


# -- the denoiser ------------------------------------------------------------------------------------------------


def calls_of(module: torch.nn.Module, calls: list):
    """Note what `module` is asked and answers."""
    return module.register_forward_hook(lambda _, __, asked, answer: calls.append((asked, answer)), with_kwargs=True)


@pytest.mark.parametrize("variant", ["dev", "schnell"])
def test_one_call_of_the_denoiser_equals_the_pipelines(encoders, pipelines, denoisers, variant):
    guidance = 3.5 if variant == "dev" else None
    noise, theirs, ours = torch.randn(2, 16, 8, 16, generator=torch.Generator().manual_seed(7)), [], []
    listening = calls_of(pipelines[variant].transformer, theirs)
    pipelines[variant](
        [SHORT, LONG],
        latents=pack(noise),
        width=64,
        height=32,
        num_inference_steps=1,
        guidance_scale=3.5,
        max_sequence_length=256 if variant == "schnell" else 512,
        output_type="latent",
    )
    listening.remove()
    denoiser = denoisers(variant)
    calls_of(denoiser.module, ours)
    batch = Batch(texts_of(encoders[variant], SHORT, LONG), guidance=guidance)
    with torch.no_grad():
        found = denoiser.predict(noise, torch.ones(2), batch)
    asked, answer = theirs[0]
    for name in ("hidden_states", "encoder_hidden_states", "pooled_projections", "img_ids", "txt_ids", "timestep"):
        assert farthest(ours[0][0][name].float(), asked[name].float()) < 1e-5, name
    if guidance is None:
        assert asked["guidance"] is ours[0][0]["guidance"] is None
    else:
        assert torch.equal(asked["guidance"], ours[0][0]["guidance"])
    assert farthest(found, unpack(answer[0], 8, 16)) < 1e-5


@pytest.mark.parametrize("variant", ["dev", "schnell"])
def test_what_modulation_layers_get_is_known_beforehand(encoders, denoisers, variant):
    denoiser, got = denoisers(variant), {}
    for name, layer in denoiser.module.named_modules():
        for ending in Flux.modulation:
            if any(name.startswith(kind) for kind in ("transformer_blocks", "single")) and name.endswith(f".{ending}"):
                layer.register_forward_pre_hook(lambda _, given, ending=ending: got.setdefault(ending, given[0]))
    batch = Batch(texts_of(encoders[variant], SHORT, LONG), guidance=3.5 if variant == "dev" else None)
    t = torch.tensor([0.3, 0.8])
    with torch.no_grad():
        denoiser.predict(torch.randn(2, 16, 4, 6), t, batch)
        known = denoiser.condition(t, batch)
    assert known.keys() == got.keys() == set(Flux.modulation)
    assert all(torch.equal(known[ending], got[ending]) for ending in known)


@pytest.mark.parametrize(("variant", "guided"), [("dev", False), ("schnell", True)])
def test_a_model_of_the_other_kind_is_refused(sources, variant, guided):
    with pytest.raises(ModelError, match=r"guidance.*Say variant = ") as caught:
        FluxDenoiser(sources[variant], guided)
    assert "\n" not in str(caught.value)


def test_the_toy_of_schnell_answers_as_that_of_dev_told_of_guidance(encoders, denoisers):
    noise, t = torch.randn(2, 16, 12, 12, generator=torch.Generator().manual_seed(3)), torch.tensor([0.3, 0.9])
    text = texts_of(encoders["dev"], SHORT, LONG)
    with torch.no_grad():
        told, other = (denoisers("dev").predict(noise, t, Batch(text, guidance=g)) for g in (3.5, 1.0))
        untold = denoisers("schnell").predict(noise, t, Batch(text))
    assert farthest(told, untold) < 2e-2  # one bias is rounded to fp16
    assert farthest(other, untold) > 2 * farthest(told, untold)


# -- previews ----------------------------------------------------------------------------------------------------


def settings_of(width: int, height: int, variant: str, *prompts: str) -> dict:
    guidance = 1.0 if variant == "schnell" else 3.5
    return {"prompts": prompts, "width": width, "height": height, "guidance": guidance, "steps": 3, "seed": 3}


def pipeline_draws(pipeline, noise, sampling, **options):
    return pipeline(
        prompt=list(sampling.prompts),
        latents=pack(noise),
        width=sampling.width,
        height=sampling.height,
        num_inference_steps=sampling.steps,
        guidance_scale=sampling.guidance,
        **options,
    ).images


def painter_for(variant, sampling, denoiser, coder, subjects) -> Painter:
    return Painter(FAMILY, Flux.variants[variant], sampling, denoiser, coder, flow_match(variant), subjects)


@pytest.mark.parametrize("variant", ["dev", "schnell"])
@pytest.mark.parametrize(("width", "height"), SIZES)
def test_preview_equals_the_pipelines_picture(plan_of, denoisers, coder, encoders, pipelines, variant, width, height):
    sampling = plan_of(variant, sampling=settings_of(width, height, variant, LONG)).settings.sampling
    text = texts_of(encoders[variant], LONG)
    drawn = painter_for(variant, sampling, denoisers(variant), coder, [Subject(text, text)]).draw(0, CPU, torch.float32)
    length = {"max_sequence_length": 256} if variant == "schnell" else {}
    expected = pipeline_draws(pipelines[variant], noise_for(sampling, coder), sampling, **length)
    assert drawn.size == (width, height)
    assert pixels_apart(drawn, expected[0]) <= 1


def test_latents_of_two_captions_equal_the_pipelines(plan_of, denoisers, encoders, coder, pipelines):
    sampling = plan_of(sampling=settings_of(64, 32, "dev", SHORT, LONG)).settings.sampling
    noise = torch.cat([noise_for(sampling, coder, number) for number in range(2)])
    about = Batch(texts_of(encoders["dev"], SHORT, LONG), guidance=3.5)
    latents = denoise(denoisers("dev"), flow_match("dev"), noise, about, None, sampling, tokens_of(noise))
    expected = pipeline_draws(pipelines["dev"], noise, sampling, output_type="latent")
    assert farthest(pack(latents), expected) < TOLERANCE


# -- Kontext's references ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> dict[str, Path]:
    """Pictures of speckles and slopes: unlike any of their flips and turns, and sensitive to resampling."""
    folder, chance, made = tmp_path_factory.mktemp("pictures"), np.random.default_rng(5), {}
    for name, (width, height) in {"wide": (160, 96), "tall": (96, 176), "square": (128, 128)}.items():
        slope = np.linspace(0, 1, width)[None, :, None] * [255, 80, 0] + np.linspace(0, 1, height)[:, None, None] * 70
        made[name] = folder / f"{name}.png"
        speckled = np.clip(slope + chance.normal(0, 25, (height, width, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(speckled).save(made[name])
    return made


@pytest.fixture
def gathered(kit, plan_of, sources, pictures, tmp_path):
    """What lorakit draws from: (its settings, the encoded subjects, the image coder)."""

    def make(prompts: dict[str, tuple[str, ...]], size=(64, 48)):
        references = [[str(pictures[name]) for name in some] for some in prompts.values()]
        drawn = {**settings_of(*size, "kontext", *prompts), "references": references, "guidance": 2.5}
        plan = plan_of("kontext", train={"reference_resolution": ENCODED}, sampling=drawn)
        family = kit.shelves.families["flux"]
        context = Context(plan, family, kit.shelves, sources["kontext"], Cache(tmp_path / "cache"), CPU, Control())
        material = drained(gather(context))
        return plan.settings.sampling, material.subjects(), material.coder

    return make


def seen_by(pipeline, path: Path) -> Image.Image:
    """The picture at the size that stands here for the preferred one, resampled by the pipeline's own processor."""
    with Image.open(path) as image:
        shape = FAMILY.reference_shape(Shape(*image.size), ENCODED)
        return pipeline.image_processor.resize(image, shape.height, shape.width)


def kontext_draws(pipeline, path: Path, sampling, noise, **options):
    area = {"max_area": sampling.width * sampling.height, "_auto_resize": False}
    return pipeline_draws(pipeline, noise, sampling, image=seen_by(pipeline, path), **area, **options)


class Stop(Exception):  # noqa: N818 - it ends a call that has told what was asked
    pass


LARGE = [(1024, 1024), (1000, 750), (751, 1000), (4000, 3000), (1920, 1080)]


@pytest.mark.parametrize("size", [*LARGE, (639, 1279), (70, 40), (3000, 500), (33, 31)])
def test_the_size_of_references_is_the_one_that_the_pipeline_chooses(pipelines, monkeypatch, size):
    pipeline, chosen = pipelines["kontext"], []

    def resize(image, height, width):
        chosen.append((width, height))
        raise Stop

    processor = VaeImageProcessor(vae_scale_factor=16)  # the published coder's, twice as coarse as the toy's
    monkeypatch.setattr(processor, "resize", resize)
    monkeypatch.setattr(pipeline, "image_processor", processor)
    text = {"prompt_embeds": torch.zeros(1, 1, 64), "pooled_prompt_embeds": torch.zeros(1, 64)}
    with pytest.raises(Stop):
        pipeline(image=Image.new("RGB", size), **text)
    shape = FAMILY.reference_shape(Shape(*size), 1024)
    assert (shape.width, shape.height) == chosen[0]


def test_preferred_sizes_are_diffusers_and_scale_with_their_area():
    assert sorted(PREFERRED_KONTEXT_RESOLUTIONS) == PREFERRED
    for resolution in (64, 512, 768, 1024):
        shape = FAMILY.reference_shape(Shape(1920, 1080), resolution)
        assert shape.width % 16 == shape.height % 16 == 0
        assert shape.width * shape.height == pytest.approx(resolution**2, rel=0.25 if resolution == 64 else 0.05)
    assert FAMILY.reference_shape(Shape(3, 2000), 16) == Shape(16, 32)


@pytest.mark.parametrize("name", ["wide", "tall"])
def test_latents_of_references_equal_the_pipelines(gathered, pipelines, pictures, name):
    _, (subject,), _ = gathered({SHORT: (name,)})
    pipeline = pipelines["kontext"]
    pixels = pipeline.image_processor.preprocess(seen_by(pipeline, pictures[name]))
    with torch.no_grad():
        expected = pipeline._encode_vae_image(pixels, None)[0]
    assert expected.shape[-1] != expected.shape[-2]
    assert farthest(subject.references[0], expected) < 1e-5


def test_one_call_of_kontext_equals_the_pipelines(gathered, pipelines, pictures, denoisers):
    pipeline, theirs, ours = pipelines["kontext"], [], []
    sampling, (subject,), coder = gathered({SHORT: ("wide",)})
    noise = noise_for(sampling, coder)
    listening = calls_of(pipeline.transformer, theirs)
    kontext_draws(pipeline, pictures["wide"], sampling, noise, output_type="latent")
    listening.remove()
    denoiser = denoisers("kontext")
    calls_of(denoiser.module, ours)
    batch = Batch(subject.text, (subject.references[0][None],), guidance=2.5)
    with torch.no_grad():
        found = denoiser.predict(noise, torch.ones(1), batch)
        blind = denoiser.predict(noise, torch.ones(1), Batch(subject.text, guidance=2.5))
    asked, answer = theirs[0]
    assert set(ours[0][0]["img_ids"][:, 0].tolist()) == {0.0, 1.0}
    for name in ("hidden_states", "img_ids", "txt_ids"):
        assert farthest(ours[0][0][name].float(), asked[name].float()) < 1e-5, name
    assert farthest(found, unpack(answer[0][:, : tokens_of(noise)], *noise.shape[-2:])) < 1e-5
    assert farthest(found, blind) > 1e-3  # or the comparison says nothing of references


@pytest.mark.parametrize("name", ["wide", "square"])
def test_kontexts_preview_equals_the_pipelines_picture(gathered, pipelines, pictures, denoisers, name):
    sampling, subjects, coder = gathered({LONG: (name,)})
    drawn = painter_for("kontext", sampling, denoisers("kontext"), coder, subjects).draw(0, CPU, torch.float32)
    expected = kontext_draws(pipelines["kontext"], pictures[name], sampling, noise_for(sampling, coder))
    assert drawn.size == (64, 48)
    assert pixels_apart(drawn, expected[0]) <= 1


def test_kontext_without_a_reference_draws_from_text(gathered, pipelines, denoisers):
    sampling, subjects, coder = gathered({LONG: ()})
    drawn = painter_for("kontext", sampling, denoisers("kontext"), coder, subjects).draw(0, CPU, torch.float32)
    area = sampling.width * sampling.height
    expected = pipeline_draws(pipelines["kontext"], noise_for(sampling, coder), sampling, max_area=area)
    assert pixels_apart(drawn, expected[0]) <= 1


# -- loss --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("guidance", [1.0, 3.5])
def test_loss_equals_the_example_scripts(plan_of, denoisers, encoders, coder, pipelines, guidance):
    """diffusers' examples/dreambooth/train_dreambooth_lora_flux.py, from its latents on."""
    asked = {"caption_dropout": 0.0, "guidance": guidance}
    plan = plan_of(scheduler={"timesteps": "sigmoid"}, train=asked, seed=5)
    denoiser = denoisers("dev")
    adapter = attach(denoiser, plan.settings.lora, 5, CPU)
    pixels = torch.cat([picture(64, 32), picture(64, 32).flip(-1)])
    with torch.no_grad():
        latents = coder.encode(pixels)
    items = [Item(one, texts_of(encoders["dev"], caption)) for one, caption in zip(latents, (SHORT, LONG), strict=True)]
    trainer = Trainer(plan, denoiser, adapter, flow_match("dev"), None, 2, torch.float32)
    ours = trainer.loss(Turn((0, 1), 7, 0), items.__getitem__)

    draws = [draw(5, number, (16, 8, 16)) for number in (7, 8)]
    model_input, noise = latents, torch.stack([one.noise for one in draws])
    sigmas = torch.sigmoid(torch.special.ndtri(torch.stack([one.level for one in draws]))).view(2, 1, 1, 1)
    timesteps = sigmas.flatten() * 1000
    pipeline = pipelines["dev"]
    with torch.no_grad():
        hidden, pooled, text_ids = pipeline.encode_prompt([SHORT, LONG], [SHORT, LONG])
        noisy = (1.0 - sigmas) * model_input + sigmas * noise
        prediction = pipeline.transformer(
            hidden_states=FluxPipeline._pack_latents(noisy, 2, 16, 8, 16),
            timestep=timesteps / 1000,
            guidance=torch.tensor([guidance]).expand(2),
            pooled_projections=pooled,
            encoder_hidden_states=hidden,
            txt_ids=text_ids,
            img_ids=FluxPipeline._prepare_latent_image_ids(2, 4, 8, CPU, torch.float32),
            return_dict=False,
        )[0]
    prediction = FluxPipeline._unpack_latents(prediction, 32, 64, 4)
    target = noise - model_input
    expected = torch.mean(((prediction.float() - target.float()) ** 2).reshape(2, -1), 1)
    assert ours.tolist() == pytest.approx(expected.tolist(), rel=1e-5)


# -- files -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [2.0, 4.0, 8.0], ids=["half", "rank", "double"])
@pytest.mark.parametrize("text", [False, True], ids=["denoiser", "with-clip"])
def test_a_saved_lora_draws_the_same_in_the_pipeline(
    plan_of, denoisers, coder, sources, pipelines, kit, tmp_path, alpha, text
):
    drawn = settings_of(48, 48, "dev", SHORT)
    plan = plan_of(lora={"alpha": alpha}, sampling=drawn, save={"dtype": "fp32"}, text_encoder={"train": text})
    family, denoiser = kit.shelves.families["flux"], denoisers("dev")
    encoder = FluxTextEncoder(plan, sources["dev"])
    encoder.module.requires_grad_(False).eval()
    context = Context(plan, family, kit.shelves, sources["dev"], Cache(tmp_path / "cache"), CPU, Control())
    hosts = text_hosts(context, encoder) if text else ()
    adapter = attach(denoiser, plan.settings.lora, 0, CPU, hosts)
    adapter.flat.data.normal_(std=0.08, generator=torch.Generator().manual_seed(2))
    said = texts_of(encoder, SHORT)
    sampling = plan.settings.sampling
    ours = painter_for("dev", sampling, denoiser, coder, [Subject(said, said)]).draw(0, CPU, torch.float32)

    write_atomically(tmp_path / "x.safetensors", lora_file.encode(plan, family, adapter, Dataset(), 1))
    fresh = load(sources["dev"])
    fresh.load_lora_weights(str(tmp_path), weight_name="x.safetensors")
    noise = noise_for(sampling, coder)
    assert pixels_apart(ours, pipeline_draws(fresh, noise, sampling)[0]) <= 1
    assert pixels_apart(ours, pipeline_draws(pipelines["dev"], noise, sampling)[0]) > 5  # or it says nothing


def test_diffusers_loads_the_toys_unchanged(pipelines):
    for variant, pipeline in pipelines.items():
        assert type(pipeline).__name__ == Flux.variants[variant].pipeline
        kinds = {name: type(part).__name__ for name, part in pipeline.components.items() if part is not None}
        assert kinds == {
            "scheduler": "FlowMatchEulerDiscreteScheduler",
            "text_encoder": "CLIPTextModel",
            "text_encoder_2": "T5EncoderModel",
            "tokenizer": "CLIPTokenizer",
            "tokenizer_2": "T5Tokenizer",
            "transformer": "FluxTransformer2DModel",
            "vae": "AutoencoderKL",
        }


def test_the_toy_has_the_familys_shift(sources):
    config = json.loads((sources["dev"].folder / "scheduler" / "scheduler_config.json").read_text())
    shift = Flux.variants["dev"].flow_shift
    assert (shift.base_tokens, shift.base_shift) == (config["base_image_seq_len"], config["base_shift"])
    assert (shift.max_tokens, shift.max_shift) == (config["max_image_seq_len"], config["max_shift"])
