"""What SDXL's plan decides, refuses and warns of."""

from __future__ import annotations

import re

import pytest
from PIL import Image

from lorakit import Kit
from lorakit.errors import ConfigError, RuleError

KIT = Kit()


@pytest.fixture
def plan_for(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    Image.new("RGB", (1024, 1024)).save(folder / "0.png")

    def make(caption="a red circle", preset="none", **tables):
        (folder / "0.txt").write_text(caption)
        data = [{"folder": str(folder)}]
        return KIT.plan({"family": "sdxl", "preset": preset, "trigger": "sks", "data": data, **tables})

    return make


def said(plan) -> str:
    return "\n".join(problem.message for problem in plan.problems)


def test_what_nobody_has_to_say(plan_for):
    plan = plan_for()
    settings = plan.settings
    assert settings.model.source == "stabilityai/stable-diffusion-xl-base-1.0"
    assert (settings.scheduler.name, settings.scheduler.timesteps) == ("ddpm", "uniform")
    assert (settings.sampling.guidance, settings.sampling.steps) == (7.0, 30)
    assert (settings.quantization.name, settings.text_encoder.train, settings.text_encoder.cache) == (
        "none",
        False,
        True,
    )
    assert plan.problems == ()


@pytest.mark.parametrize("preset", ["character", "character-16gb", "character-48gb", "character-text"])
def test_every_character_is_the_summary_of_the_first_users(plan_for, preset):
    settings = plan_for(preset=preset).settings
    assert (settings.lora.rank, settings.optimizer.learning_rate, settings.scheduler.name) == (64, 1e-4, "ddpm")
    assert (settings.sampling.guidance, settings.sampling.steps, settings.save.dtype) == (7.0, 30, "fp16")
    assert settings.train.batch_size * settings.train.accumulation == 4
    assert settings.text_encoder.train == (preset == "character-text")


def test_another_objective_is_refused_with_the_reason(plan_for):
    with pytest.raises(RuleError, match=r"family sdxl says only 'ddpm', because SDXL was trained to predict noise"):
        plan_for(scheduler={"name": "flowmatch"})


@pytest.mark.parametrize("name", ["none", "int8", "int8-fast", "int4", "int2"])
def test_every_quantization_is_allowed(plan_for, name):
    plan = plan_for(quantization={"name": name})
    assert not plan.errors
    assert ("hardly needs it" in said(plan)) == (name == "int2")


def test_a_trained_encoder_is_not_cached_and_has_half_the_learning_rate(plan_for):
    settings = plan_for(text_encoder={"train": True}, optimizer={"learning_rate": 1e-4}).settings.text_encoder
    assert (settings.cache, settings.learning_rate) == (False, 5e-5)
    with pytest.raises(ConfigError, match="a trained text encoder cannot be cached"):
        plan_for(text_encoder={"train": True, "cache": True})
    with pytest.raises(ConfigError, match=r"text_encoder\.learning_rate would have no effect"):
        plan_for(text_encoder={"learning_rate": 1e-5})


def test_captions_that_are_certainly_cut_are_told(plan_for):
    assert "is cut" not in said(plan_for(" ".join(["word"] * 74)))  # and the trigger
    told = said(plan_for(" ".join(["word"] * 75)))
    assert re.search(r"1 text of over 75 words: the text encoder of SDXL reads 77 tokens.*as of 'sks, word word", told)
    prompts = (" ".join(["word"] * 76), "short")
    assert "1 text of over 75 words" in said(plan_for(sampling={"prompts": prompts}))


@pytest.mark.parametrize(
    ("scheduler", "says"),
    [
        ({"prediction": "v_prediction", "min_snr_gamma": 5}, "noisiest levels count almost nothing"),
        ({"noise_offset": 0.2}, "noise_offset = 0.2 is over 0.1"),
    ],
)
def test_odd_objectives_are_warned_of(plan_for, scheduler, says):
    assert says in said(plan_for(scheduler=scheduler))


def test_the_usual_objectives_are_not(plan_for):
    assert said(plan_for(scheduler={"min_snr_gamma": 5, "noise_offset": 0.05})) == ""
    assert said(plan_for(scheduler={"prediction": "v_prediction"})) == ""


@pytest.mark.parametrize(("recipe", "guidance", "steps"), [("seed", 7.0, 30), ("diffusers", 5.0, 50)])
def test_two_recipes_to_choose_from(plan_for, recipe, guidance, steps):
    sampling = plan_for(sampling={"recipe": recipe}).settings.sampling
    assert (sampling.guidance, sampling.steps) == (guidance, steps)
