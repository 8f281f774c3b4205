"""The shipped toy is what its script makes, loads unchanged in diffusers, and follows its captions."""

import json

import pytest
import torch
from diffusers import AutoencoderKLQwenImage, QwenImagePipeline

from lorakit.testing import shapes
from lorakit_qwen.family import TOY, Qwen
from tests.toys import train_qwen


@pytest.fixture(scope="module")
def pipeline():
    torch.set_num_threads(1)
    made = QwenImagePipeline.from_pretrained(TOY, dtype=torch.float32)
    made.set_progress_bar_config(disable=True)
    return made


@pytest.fixture(scope="module")
def made():
    """The script's parts before training; the text side is never trained."""
    return train_qwen.make_pipeline(train_qwen.Recipe(), train_qwen.make_coder())


def test_it_is_small():
    assert sum(path.stat().st_size for path in TOY.rglob("*") if path.is_file()) <= 8_000_000


def test_its_text_side_is_what_the_script_makes(made, pipeline):
    shipped = dict(pipeline.text_encoder.named_parameters())
    for name, tensor in made.text_encoder.named_parameters():
        assert torch.equal(shipped[name], tensor.half().float()), name
    words = "a small red star on the left, sks"
    shipped_tokens = json.loads((TOY / "tokenizer" / "tokenizer.json").read_text())["model"]["vocab"]
    assert shipped_tokens == json.loads(made.tokenizer.backend_tokenizer.to_str())["model"]["vocab"]
    assert made.tokenizer(words).input_ids


@pytest.mark.parametrize("part", ["transformer", "vae", "scheduler"])
def test_its_parts_are_built_as_the_script_builds_them(made, part):
    file = "scheduler_config.json" if part == "scheduler" else "config.json"
    shipped = json.loads((TOY / part / file).read_text())
    measured = ("latents_mean", "latents_std", "_name_or_path")
    for name, value in getattr(made, part).config.items():
        if name not in measured and not name.startswith("_"):
            assert shipped[name] == (list(value) if isinstance(value, tuple) else value), name


def test_the_script_trains(made):
    """A few updates of both trainings, from the same functions as the whole."""
    recipe = train_qwen.Recipe(
        coder_pictures=8, coder_updates=2, coder_batch=2, denoiser_pictures=40, denoiser_updates=2, denoiser_batch=2
    )
    before = {name: tensor.clone() for name, tensor in made.transformer.state_dict().items()}
    with train_qwen.fast_coder():
        train_qwen.train_coder(made.vae, recipe)
        train_qwen.train_denoiser(made, recipe)
    after = made.transformer.state_dict()
    assert any(not torch.equal(before[name], after[name]) for name in before)
    assert len(made.vae.config.latents_mean) == 16


def test_the_fast_coder_gives_the_same_values():
    coder = AutoencoderKLQwenImage.from_pretrained(TOY / "vae", dtype=torch.float32)
    pixels = torch.rand(1, 3, 1, 48, 48, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        plain = coder.encode(pixels).latent_dist.mode()
        with train_qwen.fast_coder():
            fast = coder.encode(pixels).latent_dist.mode()
    assert torch.allclose(plain, fast, atol=1e-4)


def test_its_coder_shows_scenes_and_the_concept(pipeline):
    from lorakit.testing.examples import concept_examples

    scenes = shapes.plain_scenes()
    chance = train_qwen.random.Random(5)
    assert train_qwen.reconstruction(pipeline.vae, [scene.draw(chance) for scene in scenes]) > 29
    side = (shapes.SIDE, shapes.SIDE)
    concept = [example.image.resize(side, train_qwen.Image.Resampling.BOX) for example in concept_examples()]
    assert train_qwen.reconstruction(pipeline.vae, concept) > 25


@pytest.mark.slow
def test_its_pictures_follow_their_captions(pipeline):
    scenes = shapes.plain_scenes()
    pictures = train_qwen.sample(pipeline, [scene.caption for scene in scenes], seed=4)
    assert shapes.accuracy(pictures, scenes) >= 0.85


@pytest.mark.parametrize("variant", Qwen.variants)
def test_every_variant_is_a_pipeline_folder(tmp_path, variant):
    Qwen().toy(tmp_path, variant)
    about = json.loads((tmp_path / "model_index.json").read_text())
    assert about["_class_name"] == Qwen.variants[variant].pipeline
    for name in (*Qwen.components, *Qwen.variants[variant].components):
        assert (tmp_path / name).is_dir()
        assert name in about
