"""The shipped toy is what its script makes, loads unchanged in diffusers, and has the colours of its captions."""

import json

import pytest
import torch
from diffusers import FluxPipeline

from lorakit.testing import shapes
from lorakit_flux.family import Flux
from tests.toys import learning, train_flux

SHIPPED = Flux.toy_folder


@pytest.fixture(scope="module")
def pipeline():
    torch.set_num_threads(1)
    made = FluxPipeline.from_pretrained(SHIPPED, dtype=torch.float32)
    made.set_progress_bar_config(disable=True)
    return made


@pytest.fixture(scope="module")
def made():
    """The script's parts before training; the text side is never trained."""
    return train_flux.make_pipeline(train_flux.Recipe(), train_flux.make_coder())


def test_it_is_small():
    assert learning.size_mb(SHIPPED) <= 8


@pytest.mark.parametrize("part", ["text_encoder", "text_encoder_2"])
def test_its_text_side_is_what_the_script_makes(made, pipeline, part):
    shipped = dict(getattr(pipeline, part).named_parameters())
    for name, tensor in getattr(made, part).named_parameters():
        assert torch.equal(shipped[name], tensor.half().float()), name


@pytest.mark.parametrize("part", ["tokenizer", "tokenizer_2"])
def test_its_tokenizers_know_every_word(made, pipeline, part):
    shipped, again = getattr(pipeline, part), getattr(made, part)
    assert shipped.get_vocab() == again.get_vocab()
    words = "a small red star on the left, sks"
    assert shipped(words).input_ids == again(words).input_ids
    for word in learning.WORDS:
        assert len(shipped(word).input_ids) <= 3, word  # with the marks of start and end


@pytest.mark.parametrize("part", ["transformer", "vae", "scheduler"])
def test_its_parts_are_built_as_the_script_builds_them(made, part):
    file = "scheduler_config.json" if part == "scheduler" else "config.json"
    shipped = json.loads((SHIPPED / part / file).read_text())
    measured = ("scaling_factor", "shift_factor", "_name_or_path")
    for name, value in getattr(made, part).config.items():
        if name not in measured and not name.startswith("_"):
            assert shipped[name] == (list(value) if isinstance(value, tuple) else value), name


def test_the_script_trains(made):
    """A few updates of each training, from the same functions as the whole."""
    recipe = train_flux.Recipe(
        coder_pictures=8,
        coder_updates=2,
        coder_batch=2,
        denoiser_pictures=40,
        denoiser_updates=2,
        denoiser_batch=2,
        guided_updates=2,
    )
    before = {name: tensor.clone() for name, tensor in made.transformer.state_dict().items()}
    train_flux.train_coder(made.vae, recipe)
    train_flux.train_denoiser(made, recipe)
    after = made.transformer.state_dict()
    assert any(not torch.equal(before[name], after[name]) for name in before)
    assert made.vae.config.scaling_factor != 1


@torch.no_grad()
def test_padding_told_once_is_padding_told_in_full(pipeline):
    """What makes the training cheap: 512 tokens of text, of which all but a few are one and the same."""
    caption, grid, noisy = "a large blue star", (3, 5), torch.randn(1, 15, 64)
    hidden, pooled, _ = pipeline.encode_prompt(caption, caption)
    t, guidance = torch.tensor([0.4]), torch.tensor([2.0])
    short = train_flux.encode_caption(pipeline, caption)
    assert short.hidden.shape[1] < 10

    once = train_flux.predict(pipeline.transformer, noisy, t, guidance, short, grid)
    whole = pipeline.transformer(
        hidden_states=noisy,
        timestep=t,
        guidance=guidance,
        pooled_projections=pooled,
        encoder_hidden_states=hidden,
        txt_ids=torch.zeros(512, 3),
        img_ids=FluxPipeline._prepare_latent_image_ids(1, *grid, torch.device("cpu"), torch.float32),
        return_dict=False,
    )[0]
    assert torch.allclose(once, whole, atol=1e-4)


def test_its_coder_shows_scenes_and_the_concept(pipeline):
    scenes, concept = learning.exam_pictures()
    assert train_flux.reconstruction(pipeline.vae, scenes) > 27
    assert train_flux.reconstruction(pipeline.vae, concept) > 20


@pytest.mark.parametrize("variant", Flux.variants)
def test_every_variant_is_a_pipeline_folder(tmp_path, variant):
    Flux().toy(tmp_path, variant)
    about = json.loads((tmp_path / "model_index.json").read_text())
    assert about["_class_name"] == Flux.variants[variant].pipeline
    for name in Flux.components:
        assert (tmp_path / name).is_dir()
        assert name in about
    config = json.loads((tmp_path / "transformer" / "config.json").read_text())
    assert config["guidance_embeds"] == (variant != "schnell")


@pytest.mark.thorough
@pytest.mark.slow
def test_its_pictures_have_the_colours_of_their_captions(pipeline):
    scenes = shapes.plain_scenes()
    pictures = train_flux.sample(pipeline, [scene.caption for scene in scenes], seed=4)
    found = [shapes.classify(picture) for picture in pictures]
    colours = [named is not None and named[0] == scene.colour for named, scene in zip(found, scenes, strict=True)]
    assert sum(colours) / len(colours) >= 0.85
