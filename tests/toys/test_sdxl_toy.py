"""The shipped toy is what its script makes, loads unchanged in diffusers, and follows its captions a little."""

import json
import random

import pytest
import torch
from diffusers import StableDiffusionXLPipeline

from lorakit.testing import shapes
from lorakit_sdxl.family import TOY, Sdxl
from tests.toys import train_sdxl


@pytest.fixture(scope="module")
def pipeline():
    torch.set_num_threads(1)
    made = StableDiffusionXLPipeline.from_pretrained(TOY, dtype=torch.float32, add_watermarker=False)
    made.set_progress_bar_config(disable=True)
    return made


@pytest.fixture(scope="module")
def made():
    """The script's parts before training; the text side is never trained."""
    return train_sdxl.make_pipeline(train_sdxl.Recipe(), train_sdxl.make_coder())


def test_it_is_small():
    assert sum(path.stat().st_size for path in TOY.rglob("*") if path.is_file()) <= 8_000_000


@pytest.mark.parametrize("number", ["", "_2"])
def test_its_text_side_is_what_the_script_makes(made, pipeline, number):
    shipped = dict(getattr(pipeline, f"text_encoder{number}").named_parameters())
    for name, tensor in getattr(made, f"text_encoder{number}").named_parameters():
        assert torch.equal(shipped[name], tensor.half().float()), name
    words = "a small red star on the left, sks"
    tokens = (getattr(one, f"tokenizer{number}")(words, padding="max_length").input_ids for one in (made, pipeline))
    assert next(tokens) == next(tokens)


def test_padding_differs_as_with_the_published_tokenizers(pipeline):
    first, second = (
        one("a star", padding="max_length").input_ids for one in (pipeline.tokenizer, pipeline.tokenizer_2)
    )
    assert len(first) == len(second) == 77
    assert first[:4] == second[:4]
    assert (first[-1], second[-1]) == (pipeline.tokenizer.eos_token_id, 0)


@pytest.mark.parametrize("part", ["unet", "vae", "scheduler"])
def test_its_parts_are_built_as_the_script_builds_them(made, part):
    file = "scheduler_config.json" if part == "scheduler" else "config.json"
    shipped = json.loads((TOY / part / file).read_text())
    for name, value in getattr(made, part).config.items():
        if name not in ("scaling_factor", "_name_or_path") and not name.startswith("_"):
            assert shipped[name] == (list(value) if isinstance(value, tuple) else value), name


def test_the_script_trains(made):
    """A few updates of both trainings, from the same functions as the whole."""
    recipe = train_sdxl.Recipe(
        coder_pictures=8, coder_updates=2, coder_batch=4, denoiser_pictures=40, denoiser_updates=2, denoiser_batch=2
    )
    before = {name: tensor.clone() for name, tensor in made.unet.state_dict().items()}
    train_sdxl.train_coder(made.vae, recipe)
    train_sdxl.train_denoiser(made, recipe)
    assert any(not torch.equal(before[name], tensor) for name, tensor in made.unet.state_dict().items())
    assert made.vae.config.scaling_factor != 1


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers' own
def test_its_pictures_follow_their_captions_more_than_by_chance(pipeline):
    scenes = shapes.plain_scenes()
    pictures = train_sdxl.sample(pipeline, [scene.caption for scene in scenes], seed=4)
    assert shapes.accuracy(pictures, scenes) >= 0.1  # by chance one in 48; it was trained for minutes


def test_its_coder_shows_scenes(pipeline):
    chance = random.Random(5)
    pixels = train_sdxl.to_pixels([scene.draw(chance) for scene in shapes.plain_scenes()])
    with torch.no_grad():
        shown = pipeline.vae.decode(train_sdxl.encode(pipeline.vae, pixels)).sample.clamp(-1, 1)
    assert float((shown - pixels).square().mean()) < 0.01  # 26 dB


def test_it_is_a_pipeline_folder(tmp_path):
    Sdxl().toy(tmp_path, "base")
    about = json.loads((tmp_path / "model_index.json").read_text())
    assert about["_class_name"] == Sdxl.variants["base"].pipeline
    for name in Sdxl.components:
        assert (tmp_path / name).is_dir()
        assert name in about
