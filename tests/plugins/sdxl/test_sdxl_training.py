"""SDXL is taught: on every base, with and without recomputation, its text encoders too, and exactly after a stop."""

from __future__ import annotations

import pytest
import safetensors.torch
import torch
from diffusers import UNet2DConditionModel

from lorakit.control import Control
from lorakit.engine.cache import Cache
from lorakit.engine.loading import load_model
from lorakit.engine.loop import Trainer
from lorakit.engine.material import gather
from lorakit.engine.objective import make_scheduler
from lorakit.engine.parts import Source
from lorakit.engine.phases import Context
from lorakit.engine.preview import Painter
from lorakit.engine.source import DTYPES, cache_folder, locate
from lorakit.events import PhaseFinished, RunFinished, UpdateFinished
from lorakit.order import turns
from lorakit_sdxl.family import Sdxl
from lorakit_sdxl.model import ENCODERS

CPU = torch.device("cpu")
TAUGHT = {"train": {"updates": 4, "batch_size": 2, "caption_dropout": 0.2}, "text_encoder": {"train": True}}


@pytest.fixture
def plan_for(make_plan, pictures, tmp_path):
    def make(**tables):
        return make_plan(data=[{"folder": str(pictures)}], trigger="sks", output=str(tmp_path / "runs"), **tables)

    return make


@pytest.fixture
def context_for(kit, family):
    def make(plan):
        source = locate(plan, family)
        return Context(plan, family, kit.shelves, source, Cache(cache_folder(plan)), CPU, Control())

    return make


def drained(work):
    """The answer of a phase, its events dropped."""
    while True:
        try:
            next(work)
        except StopIteration as end:
            return end.value


@pytest.fixture
def trained(kit, context_for):
    """(material, denoiser, adapter, trainer) of a plan, trained as planned, without its previews and files."""

    def train(plan, updates=None):
        context = context_for(plan)
        material = drained(gather(context))
        model = drained(load_model(context, material.encoder))
        denoiser, adapter = model.denoiser, model.adapter
        groups = [part.group for part in adapter.parts]
        optimizer = kit.shelves.optimizers["adamw"].resolve()(groups, plan.settings.optimizer)
        made = (plan, denoiser, adapter, make_scheduler(context), optimizer, 1, context.source.dtype)
        trainer = Trainer(*made, material.conditions)
        for batches, _ in zip(turns(material.dataset, plan.settings.train, 0, 0), range(updates or 99), strict=False):
            trainer.update(batches, material.item)
        return material, denoiser, adapter, trainer

    return train


def weights(plan):
    return safetensors.torch.load_file(plan.folder / f"{plan.settings.name}.safetensors")


def same(one, other) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


# -- the base ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_streamed_weights_equal_from_pretrained_bit_for_bit(plan_for, context_for, toy, precision):
    denoiser = drained(load_model(context_for(plan_for(train={"precision": precision})))).denoiser
    wanted = Source(toy, "it", DTYPES[precision]).load(UNet2DConditionModel, "unet").state_dict()
    state = denoiser.module.state_dict()
    found = {name.replace(".base.", "."): one for name, one in state.items() if ".lora_" not in name}
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], one) and found[name].dtype == one.dtype for name, one in wanted.items())


@pytest.mark.thorough
def test_a_quantized_base_is_taught_with_recomputation(kit, plan_for):
    """On every other quantized base without it, in tests/plugins/test_promises.py."""
    plan = plan_for(quantization={"name": "int4"}, train={"updates": 2, "gradient_checkpointing": True})
    events = list(kit.train(plan))
    notes = [event.note for event in events if isinstance(event, PhaseFinished) and event.phase == "quantize"]
    assert notes == ["192 layers"]
    assert events[-1].proof == "diffusers 192/192 modules, scale 1.000 | ComfyUI keys 192/192"
    assert all(one.any() for key, one in weights(plan).items() if key.endswith("lora_up.weight"))


def test_recomputing_changes_no_gradient(plan_for, trained):
    found = {}
    for recomputes in (False, True):
        plan = plan_for(train={"updates": 2, "gradient_checkpointing": recomputes, "batch_size": 2})
        found[recomputes] = trained(plan)[2].flat.detach()
    torch.testing.assert_close(found[True], found[False], rtol=1e-5, atol=1e-7)


@pytest.mark.thorough
def test_bf16_trains(kit, plan_for):
    plan = plan_for(train={"updates": 2, "precision": "bf16"}, save={"dtype": "fp16"}, scheduler={"min_snr_gamma": 5})
    assert isinstance(list(kit.train(plan))[-1], RunFinished)
    assert {one.dtype for one in weights(plan).values()} == {torch.float16}


# -- text encoders -----------------------------------------------------------------------------------------------


def test_both_text_encoders_learn_at_their_own_rate_and_their_bases_stay(plan_for, trained, toy):
    plan = plan_for(**TAUGHT | {"text_encoder": {"train": True, "learning_rate": 2e-4}})
    assert plan.settings.text_encoder.cache is False
    material, _, adapter, trainer = trained(plan)
    assert trainer.updates == 4
    assert [part.share for part in adapter.parts] == pytest.approx([1.0, 0.2, 0.2])
    rates = [group["lr"] for group in trainer.optimizer.param_groups]
    assert rates == pytest.approx([1e-3, 2e-4, 2e-4])
    for name in ENCODERS:
        ups = {layer: one.lora_B for layer, one in adapter.layers.items() if layer.startswith(f"{name}.")}
        assert len(ups) == 18
        still = {layer for layer, up in ups.items() if not up.any()}
        # nothing that SDXL reads comes from the last layer of the first encoder
        assert still == {layer for layer in ups if name == "text_encoder" and ".layers.2." in layer}
        moved = max(float(up.detach().abs().max()) for up in ups.values())
        assert 1e-4 < moved < 2e-3  # four updates of AdamW go at most four rates far
        wanted = Source(toy, "it", torch.float32).load(ENCODERS[name], name).state_dict()
        state = material.encoder.module.get_submodule(name).state_dict()
        found = {key.replace(".base.", "."): one for key, one in state.items() if ".lora_" not in key}
        assert same(found, wanted)


def test_previews_are_drawn_with_the_trained_encoders(plan_for, trained, context_for):
    plan = plan_for(**TAUGHT, sampling={"every": 1, "steps": 2, "prompts": ["a red circle"], "width": 32, "height": 32})
    material, denoiser, adapter, trainer = trained(plan, 1)
    variant, sampling = Sdxl.variants["base"], plan.settings.sampling
    painter = Painter(
        Sdxl(), variant, sampling, denoiser, material.coder, trainer.scheduler, material.subjects(), material.conditions
    )

    def text():
        return material.conditions([material.subjects()[0].text]).hidden.detach()

    before, drawn = text(), painter.draw(0, CPU, torch.float32)
    for layer, one in adapter.layers.items():
        if layer.startswith("text_encoder"):
            one.lora_B.data.normal_(std=0.3, generator=torch.Generator().manual_seed(1))
    assert (text() - before).abs().max() > 0.05
    assert painter.draw(0, CPU, torch.float32).tobytes() != drawn.tobytes()
    with adapter.at(0.0):
        plain = text()
    torch.testing.assert_close(plain, before, rtol=0, atol=0.05)


@pytest.mark.thorough
def test_a_stopped_run_goes_on_to_the_same_file(kit, plan_for):
    """With two optimizer states, dropout of captions, and previews on the way."""
    options = {**TAUGHT, "sampling": {"every": 2, "steps": 2, "prompts": ["a star"], "width": 32, "height": 32}}
    straight, stopped = plan_for(name="straight", **options), plan_for(name="stopped", **options)
    last = list(kit.train(straight))[-1]
    assert last.proof == "diffusers 228/228 modules, scale 1.000 | ComfyUI keys 228/228"
    control = Control()
    for event in kit.train(stopped, control):
        if isinstance(event, UpdateFinished) and event.update == 2:
            control.stop("enough")
    more = list(kit.resume(stopped.folder))
    assert [event.update for event in more if isinstance(event, UpdateFinished)] == [3, 4]
    assert same(weights(stopped), weights(straight))
    assert any(one.any() for key, one in weights(straight).items() if "lora_te1" in key and "lora_up" in key)
