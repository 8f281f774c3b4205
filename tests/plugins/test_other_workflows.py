"""The workflows of FLUX.1 and SDXL: every node as ComfyUI declares it, every value the run's own."""

import json
import math

import pytest

from lorakit import Kit, workflow
from tests import comfyui
from tests.pictures import picture

KIT = Kit()
CASES = [
    ("flux", "dev", 0),
    ("flux", "schnell", 0),
    ("flux", "kontext", 0),
    ("flux", "kontext", 1),
    ("sdxl", "base", 0),
]


@pytest.fixture
def made(tmp_path):
    picture(tmp_path / "seen.png")

    def make(family, variant, references=0, **sampling):
        seen = [str(tmp_path / "seen.png")] * references
        plan = KIT.plan(
            {
                "family": family,
                "variant": variant,
                "preset": "none",
                "trigger": "maya",
                "output": str(tmp_path),
                "sampling": {"prompts": ["maya, portrait"], "references": [seen], **sampling},
            }
        )
        return json.loads(workflow.written(plan, KIT.shelves.families[family]))

    return make


@pytest.mark.parametrize(("family", "variant", "references"), CASES)
def test_every_node_is_as_comfyui_declares_it(made, family, variant, references):
    nodes = made(family, variant, references)
    assert comfyui.faults(nodes) == []
    assert "{" not in json.dumps([value for node in nodes.values() for value in node["inputs"].values()])
    linked = {value[0] for node in nodes.values() for value in node["inputs"].values() if isinstance(value, list)}
    (last,) = set(nodes) - linked
    assert nodes[last]["class_type"] == "SaveImage"
    assert comfyui.of(nodes, "LoraLoader")["lora_name"] == "maya.safetensors"


def test_flux_is_told_its_guidance_and_draws_without_a_negative(made):
    nodes = made("flux", "dev", guidance=4.0, steps=30, seed=5)
    assert comfyui.of(nodes, "FluxGuidance")["guidance"] == 4.0
    sampler = comfyui.of(nodes, "KSampler")
    assert (sampler["cfg"], sampler["steps"], sampler["seed"], sampler["sampler_name"]) == (1.0, 30, 5, "euler")
    assert nodes[sampler["negative"][0]]["class_type"] == "ConditioningZeroOut"


def test_levels_are_shifted_by_size_as_previews_are_or_by_a_fixed_factor(made):
    usual = comfyui.of(made("flux", "dev", width=832, height=1216), "ModelSamplingFlux")
    assert (usual["base_shift"], usual["max_shift"], usual["width"], usual["height"]) == (0.5, 1.15, 832, 1216)
    fixed = comfyui.of(made("flux", "dev", shift=3.0), "ModelSamplingFlux")
    assert math.exp(fixed["base_shift"]) == pytest.approx(3.0, abs=1e-3)
    assert fixed["base_shift"] == fixed["max_shift"]
    assert not any(node["class_type"] == "ModelSamplingFlux" for node in made("flux", "schnell").values())


def test_kontext_shows_its_reference(made):
    nodes = made("flux", "kontext", 1)
    assert comfyui.of(nodes, "LoadImage")["image"] == "seen.png"
    assert nodes[comfyui.of(nodes, "FluxGuidance")["conditioning"][0]]["class_type"] == "ReferenceLatent"


def test_sdxl_is_guided_by_a_negative_prompt(made):
    nodes = made("sdxl", "base", guidance=6.5, negative="blurry")
    sampler = comfyui.of(nodes, "KSampler")
    assert sampler["cfg"] == 6.5
    assert nodes[sampler["negative"][0]]["inputs"]["text"] == "blurry"
