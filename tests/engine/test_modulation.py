"""Modulation worked out ahead changes no bit of what is taught or drawn, and its weights are nowhere in the model."""

from __future__ import annotations

import weakref

import pytest
import torch

from lorakit import Kit
from lorakit.engine.loading import load_model
from lorakit.engine.loop import Trainer
from lorakit.engine.modulation import Foreseen
from lorakit.engine.objective import make_scheduler
from lorakit.engine.parts import Batch, Text
from lorakit.engine.preparing import Batches, Item
from lorakit.engine.preview import denoise
from lorakit.errors import ConfigError
from lorakit.events import RunFinished
from lorakit.order import AHEAD, Turn
from tests.core.fake import make_kit
from tests.engine.quantized import context_of, drained, make_plan, write_scenes

WAYS = ("table", "layers")


def samples(number):
    chance = torch.Generator().manual_seed(number)
    length = 4 + number
    text = Text(torch.randn(1, length, 64, generator=chance), (length,))
    return Item(torch.randn(16, 12, 12, generator=chance), text)


def model_of(tmp_path, way, **tables):
    plan = make_plan(tmp_path / "runs", **{**tables, "speed": {"modulation": way}})
    context = context_of(plan)
    return plan, context, drained(load_model(context))


def trained(tmp_path, way, foresees=True, **tables):
    """The adapter's weights after three updates of batches of one and two."""
    plan, context, model = model_of(tmp_path, way, **tables)
    optimizer = Kit().shelves.optimizers["adamw"].resolve()
    trainer = Trainer(
        plan,
        model.denoiser,
        model.adapter,
        make_scheduler(context),
        optimizer([part.group for part in model.adapter.parts], plan.settings.optimizer),
        2,
        context.source.dtype,
        table=model.table,
    )
    updates = [[Turn((0, 1), 0, 0), Turn((2,), 2, 0)], [Turn((3,), 3, 0)], [Turn((1, 2), 4, 0)]]
    if foresees:
        trainer.foresee(updates, samples)
    losses = [trainer.update(turns, samples).loss for turns in updates]
    return torch.tensor(losses), model.adapter.flat.detach()


ON_MODULATION = {"rank": 4, "targets": ["attn.to_q", "img_mod.1", "txt_mod.1"]}
KINDS = [{"train": {"precision": "fp32"}}, {"train": {"precision": "bf16"}}, {"lora": ON_MODULATION}]


@pytest.mark.parametrize("tables", KINDS, ids=["fp32", "bf16", "adapter-on-modulation"])
@pytest.mark.parametrize("foresees", [True, False])
def test_training_is_the_same_to_the_bit(tmp_path, tables, foresees):
    losses, weights = trained(tmp_path, "table", foresees, **tables)
    plain_losses, plain_weights = trained(tmp_path, "layers", **tables)
    assert torch.equal(losses, plain_losses)
    assert torch.equal(weights, plain_weights)


@pytest.mark.parametrize("variant", ["image", "edit-2511"])
def test_drawing_is_the_same_to_the_bit(tmp_path, variant):
    """edit-2511 modulates references as at noise level 0."""
    drawn = []
    for way in WAYS:
        plan, context, model = model_of(tmp_path, way, variant=variant)
        noise = torch.randn(1, 16, 12, 8, generator=torch.Generator().manual_seed(1))
        about, negative = (Batch(samples(number).text, (noise.flip(2),) * (variant != "image")) for number in (1, 2))
        scheduler, settings = make_scheduler(context), plan.settings.sampling
        drawn.append(denoise(model.denoiser, scheduler, noise, about, negative, settings, 24, model.table))
    assert torch.equal(*drawn)


def test_the_weights_are_nowhere_in_the_model(tmp_path):
    sizes = []
    for way in WAYS:
        _, _, model = model_of(tmp_path, way)
        sizes.append(sum(one.numel() for one in model.denoiser.module.parameters()))
        assert sum(isinstance(one, Foreseen) for one in model.denoiser.module.modules()) == 8 * (way == "table")
    assert sizes[1] - sizes[0] == 8 * (6 * 128 * 128 + 6 * 128)


def test_modulation_is_not_quantized(tmp_path):
    """int8 errs in every layer but these."""
    _, _, model = model_of(tmp_path, "table", quantization={"name": "int8"})
    kinds = {type(layer.linear) for layer in model.table.layers}
    assert kinds == {torch.nn.Linear}
    assert {one.dtype for layer in model.table.layers for one in layer.linear.parameters()} == {torch.float32}


def test_a_whole_run_with_it_proves_its_file(tmp_path):
    pictures = write_scenes(tmp_path / "pictures", 3, 1)
    sampling = {"every": 0, "strengths": [1.0], "steps": 2}
    tables = {"train": {"updates": 3}, "save": {"every": 0}, "sampling": sampling, "lora": ON_MODULATION}
    plan = make_plan(tmp_path / "runs", pictures, **tables, speed={"modulation": "table"})
    events = list(Kit().train(plan))
    assert isinstance(events[-1], RunFinished)
    assert "scale 1.000" in events[-1].proof


def test_no_more_is_held_than_the_answers_of_a_few_passes(tmp_path, monkeypatch):
    """Not the batches that they are worked out for, and no more of them where batches are large."""
    pictures = write_scenes(tmp_path / "pictures", 16, 1)
    train = {"updates": 6, "batch_size": 8, "accumulation": 3}
    sampling = {"every": 0, "strengths": [], "steps": 2}
    tables = {"train": train, "sampling": sampling, "save": {"every": 0}, "speed": {"modulation": "table"}}
    passes, alive, most = [], weakref.WeakSet(), []
    foresee, condition = Trainer.foresee, Batches.condition

    def counted(self, updates, samples):
        passes.append(sum(len(turn.samples) for turns in updates for turn in turns))
        foresee(self, updates, samples)

    def watched(self, *given):
        found = condition(self, *given)
        alive.add(found[0])
        most.append(len(alive))
        return found

    monkeypatch.setattr(Trainer, "foresee", counted)
    monkeypatch.setattr(Batches, "condition", watched)
    list(Kit().train(make_plan(tmp_path / "runs", pictures, **tables)))
    assert sum(passes) == 6 * 24
    assert max(passes) <= AHEAD
    assert max(most) <= 2


# -- the plan ----------------------------------------------------------------------------------------------------


def test_it_is_the_plan_s_choice_wherever_it_can_be(tmp_path):
    plan = make_plan(tmp_path, model={"device": "auto"})
    assert plan.settings.speed.modulation == "table"
    assert "img_mod.1" in plan.choices["speed.modulation"].because
    on_cpu = make_plan(tmp_path)
    assert on_cpu.settings.speed.modulation == "layers"
    assert "host memory" in on_cpu.choices["speed.modulation"].because


def test_a_recovery_adapter_needs_the_layers(tmp_path):
    file = tmp_path / "recovery.safetensors"
    file.touch()
    tables = {"quantization": {"name": "int8", "recovery": str(file)}, "model": {"device": "auto"}}
    assert make_plan(tmp_path, **tables).settings.speed.modulation == "layers"
    with pytest.raises(ConfigError, match=r"speed\.modulation = 'table' is not possible.*recovery adapter"):
        make_plan(tmp_path, **tables, speed={"modulation": "table"})


@pytest.mark.parametrize("way", WAYS)
def test_a_family_without_modulation_has_no_choice(asked, way):
    kit = make_kit()
    assert kit.plan(asked).settings.speed.modulation is None
    with pytest.raises(ConfigError, match=r"is not possible.*Fake has no modulation layers"):
        kit.plan({**asked, "speed": {"modulation": way}})
