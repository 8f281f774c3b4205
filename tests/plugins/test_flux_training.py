"""FLUX.1 trains: with gradient checkpointing, with CLIP-L, and on from where it was stopped.

What every family must do, as training on a base in fewer bits, is tried in test_promises.py.
"""

from __future__ import annotations

from typing import Any

import pytest
import safetensors.torch
import torch
from PIL import Image

from lorakit import Plan
from lorakit.control import Control
from lorakit.errors import ConfigError, LorakitError, RuleError
from lorakit.events import PhaseFinished, RunFinished, RunStopped, UpdateFinished

CAPTIONS = ("a red circle", "a blue star on the left")
CLIP = "text_encoder.text_model.encoder.layers."


@pytest.fixture
def plan_of(kit, tmp_path):
    """A plan of a short run on the toy over two pictures; tables are merged over it."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number, caption in enumerate(CAPTIONS):
        Image.new("RGB", (32, 32), (90 * number, 150, 120)).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(caption, encoding="utf-8")

    def make(**tables: Any) -> Plan:
        asked: dict[str, Any] = {
            "family": "flux",
            "preset": "none",
            "name": "run",
            "trigger": "sks",
            "output": str(tmp_path / "runs"),
            "model": {"source": "toy", "device": "cpu"},
            "data": [{"folder": str(folder)}],
            "lora": {"rank": 2},
            "optimizer": {"learning_rate": 1e-3},
            "train": {"updates": 2, "resolution": 32, "precision": "fp32", "gradient_checkpointing": False},
            "quantization": {"name": "none"},
            "sampling": {"prompts": [], "every": 0, "strengths": []},
            "save": {"every": 0, "dtype": "fp32"},
        }
        for name, value in tables.items():
            asked[name] = {**asked.get(name, {}), **value} if isinstance(value, dict) else value
        return kit.plan(asked)

    return make


def weights(plan: Plan) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(plan.folder / "run.safetensors")


def losses(events) -> list[float]:
    return [event.loss for event in events if isinstance(event, UpdateFinished)]


def proof(events) -> str:
    (found,) = [event.note for event in events if isinstance(event, PhaseFinished) and event.phase == "save"]
    return found


def problems(plan: Plan) -> str:
    return " | ".join(problem.message for problem in plan.problems)


def test_gradient_checkpointing_changes_nothing(kit, plan_of):
    for name, forgets in (("kept", False), ("again", True)):
        list(kit.train(plan_of(name=name, train={"gradient_checkpointing": forgets})))
    kept, again = (
        safetensors.torch.load_file(plan_of(name=name).folder / f"{name}.safetensors") for name in ("kept", "again")
    )
    assert kept.keys() == again.keys()
    assert all(torch.equal(kept[key], again[key]) for key in kept)


def test_modulation_worked_out_ahead_changes_nothing(kit, plan_of):
    made = []
    for way in ("layers", "table"):
        plan = plan_of(name=way, speed={"modulation": way}, train={"caption_dropout": 0.5})
        list(kit.train(plan))
        made.append(safetensors.torch.load_file(plan.folder / f"{way}.safetensors"))
    assert made[0].keys() == made[1].keys()
    assert all(torch.equal(made[0][key], made[1][key]) for key in made[0])


def test_a_stopped_run_that_trains_clip_goes_on_to_the_same_file(kit, plan_of):
    options = {"train": {"updates": 3}, "text_encoder": {"train": True}}
    whole = plan_of(**options)
    list(kit.train(whole))
    expected = weights(whole)
    (whole.folder / "run.safetensors").unlink()
    plan, control = plan_of(name="stopped", **options), Control()
    events = []
    for event in kit.train(plan, control):
        events.append(event)
        if isinstance(event, UpdateFinished):
            control.stop()
    assert isinstance(events[-1], RunStopped)
    list(kit.resume(plan.folder))
    found = safetensors.torch.load_file(plan.folder / "stopped.safetensors")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in found)


# -- CLIP-L, as an experiment ------------------------------------------------------------------------------------


def test_clip_is_trained_at_its_own_rate_and_exported_under_its_old_names(kit, plan_of):
    plan = plan_of(text_encoder={"train": True, "learning_rate": 3e-4})
    assert "an experiment with FLUX.1" in problems(plan)
    assert not plan.settings.text_encoder.cache
    events = list(kit.train(plan))
    held = weights(plan)
    layers = {key.removesuffix(".lora_A.weight") for key in held if key.startswith("text_encoder")}
    targets = ("q_proj", "k_proj", "v_proj", "out_proj")
    layers = {layer for layer in layers if not layer.endswith(".lora_B.weight")}
    assert layers == {f"{CLIP}{number}.self_attn.{name}" for number in (0, 1) for name in targets}
    assert any(held[f"{layer}.lora_B.weight"].any() for layer in layers)
    assert not any("text_encoder_2" in key for key in held)
    assert proof(events).startswith("diffusers 52/52 modules, scale 1.000 | ComfyUI keys 52/52")


def test_a_base_too_large_to_load_twice_is_proven_by_names_and_shapes(kit, plan_of, monkeypatch):
    monkeypatch.setattr("lorakit.engine.proof.TWICE", 0)
    events = list(kit.train(plan_of(train={"updates": 1}, text_encoder={"train": True})))
    assert proof(events).startswith("diffusers 52/52 modules, scale 1.000 | ComfyUI keys 52/52 (names and shapes only")


def test_captions_encoded_live_teach_what_cached_ones_teach(kit, plan_of):
    """CLIP's adapter begins at no effect, so that the first update is the same whether its answer was kept or not."""
    cached, live = (
        losses(kit.train(plan_of(name=f"run-{text}", text_encoder={"train": text}, train={"updates": 1})))
        for text in (False, True)
    )
    assert live == pytest.approx(cached, rel=1e-5)


# -- Kontext and schnell -----------------------------------------------------------------------------------------


def test_kontext_learns_from_references(kit, plan_of, tmp_path):
    references = tmp_path / "before"
    references.mkdir()
    for number in (0, 1):
        Image.new("RGB", (40, 40), (200, 60, 30)).save(references / f"{number}.png")
    folder = str(tmp_path / "pictures")
    plan = plan_of(
        variant="kontext",
        data=[{"folder": folder, "references": str(references)}],
        train={"reference_resolution": 32},
    )
    assert plan.arithmetic.references == 2
    assert "taught to draw from text alone" not in problems(plan)
    assert isinstance(list(kit.train(plan))[-1], RunFinished)


def test_schnell_trains_unguided_on_its_own_text_length(kit, plan_of):
    plan = plan_of(variant="schnell")
    assert (plan.settings.sampling.guidance, plan.settings.sampling.steps) == (1.0, 4)
    assert plan.settings.train.guidance is None
    assert isinstance(list(kit.train(plan))[-1], RunFinished)


# -- what the plan says ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("variant", "guidance", "steps"), [("dev", 3.5, 50), ("kontext", 2.5, 28)])
def test_previews_and_training_are_told_of_guidance(plan_of, variant, guidance, steps):
    plan = plan_of(variant=variant)
    assert (plan.settings.sampling.guidance, plan.settings.sampling.steps) == (guidance, steps)
    assert plan.settings.train.guidance == 1.0
    assert "family flux" in plan.choices["sampling.guidance"].decided_by


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"variant": "schnell"}, "distilled to draw in 1 to 4 steps"),
        ({"variant": "kontext"}, "none of the pictures has a reference"),
        ({"text_encoder": {"train": True}}, "CLIP-L alone is trained"),
    ],
)
def test_what_is_rarely_meant_is_said(plan_of, options, said):
    assert said in problems(plan_of(**options))
    assert said not in problems(plan_of())


@pytest.mark.parametrize(
    ("options", "kind", "said"),
    [
        ({"scheduler": {"name": "ddpm"}}, RuleError, "FLUX.1 was trained to predict flow-matching velocity"),
        ({"quantization": {"name": "int2"}}, RuleError, r"lorakit recover --family flux.*uncorrected = true"),
        ({"text_encoder": {"train": True, "cache": True}}, ConfigError, "a trained text encoder cannot be cached"),
        ({"text_encoder": {"learning_rate": 1e-4}}, ConfigError, "the text encoder is not trained"),
        ({"variant": "schnell", "sampling": {"guidance": 3.5}}, RuleError, "draws without guidance"),
        ({"variant": "schnell", "train": {"guidance": 1.0}}, ConfigError, "this variant is not told of guidance"),
        ({"sampling": {"negative": "blurry"}}, ConfigError, "not guided by a negative prompt"),
        ({"variant": "pro"}, ConfigError, "flux has no variant 'pro'"),
    ],
)
def test_bad_input_is_one_paragraph(plan_of, options, kind, said):
    with pytest.raises(LorakitError, match=said) as caught:
        plan_of(**options)
    assert isinstance(caught.value, kind)
    assert "\n" not in str(caught.value)
