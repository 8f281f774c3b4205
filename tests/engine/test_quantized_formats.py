"""Each format is packed, errs as much as it must, and lets gradients through, whatever happens in between."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from torch import nn

from lorakit import Kit
from lorakit.engine.loading import check_facts, holders
from lorakit.engine.quantizers import held, quantize
from lorakit.engine.recomputing import Recomputing
from lorakit.errors import ModelError, RuleError
from lorakit.events import CheckpointSaved, PreviewDrawn, RunFinished
from tests.engine.quantized import CPU, answers, context_of, error, inputs, loaded, make_plan, write_scenes

FORMATS = ("int8", "int8-fast", "int4", "int2")
OFF = {"int8": 0.01, "int8-fast": 0.01, "int4": 0.10, "int2": 0.36}  # relative error of normal weights
BYTES = {"int8": 1.02, "int8-fast": 1.02, "int4": 0.54, "int2": 0.32}  # a weight, scales included


@pytest.fixture(params=FORMATS)
def name(request):
    return request.param


@pytest.fixture
def quantizer(name):
    return Kit().shelves.quantizers[name].resolve()()


@pytest.fixture
def linear():
    torch.manual_seed(0)
    made = nn.Linear(512, 384).requires_grad_(False)
    nn.init.normal_(made.weight, std=0.03)
    return made


@pytest.fixture
def pictures(tmp_path):
    return write_scenes(tmp_path / "pictures", 4, 1)


def quantized(bits, tmp_path, pictures, **tables):
    tables["quantization"] = {"name": bits, "uncorrected": True, **tables.get("quantization", {})}
    return make_plan(tmp_path / "runs", pictures, **tables)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_both_directions_multiply_with_the_restored_weight(name, quantizer, linear, dtype):
    made = quantizer.convert(linear, CPU)
    weight = made.restored(torch.float32)
    assert 0 < error(weight, linear.weight) < OFF[name]
    x = torch.randn(2, 5, 512).to(dtype).requires_grad_()
    answer = made(x)
    assert answer.dtype == dtype
    assert error(answer.detach(), nn.functional.linear(x.float(), weight, linear.bias).detach()) < 0.02
    answer.backward(torch.ones_like(answer))
    assert x.grad.dtype == dtype
    assert error(x.grad, torch.ones(2, 5, 384) @ weight) < 0.02


def test_the_weight_is_packed(name, quantizer, linear):
    made = quantizer.convert(linear, CPU)
    weight = sum(getattr(made, part).nbytes for part in quantizer.packed)
    code = 1024 if name == "int4" else 0  # the same table for a layer of any size
    assert (weight - code) / linear.weight.numel() < BYTES[name]
    assert quantizer.holds(made)
    assert not quantizer.holds(linear)
    assert not any(one.requires_grad for one in made.parameters())


def test_a_layer_survives_moves_and_its_state(quantizer, linear):
    made, x = quantizer.convert(linear, CPU), torch.randn(3, 512)
    before = made(x)
    made.to(torch.bfloat16).to("cpu").to(torch.float32)  # what is packed keeps its formats
    assert error(made(x), before) < 0.01
    packed = {part: getattr(made, part) for part in quantizer.packed}
    again = quantizer.rebuild(linear, packed)
    again.load_state_dict(made.state_dict())
    assert torch.equal(again(x), made(x))


@pytest.mark.parametrize(("inputs_", "outputs"), [(64, 3), (24, 10), (128, 5)])
def test_odd_shapes(quantizer, inputs_, outputs):
    made = quantizer.convert(nn.Linear(inputs_, outputs).requires_grad_(False), CPU)
    assert quantizer.holds(made)
    assert made(torch.randn(2, inputs_)).shape == (2, outputs)


def test_int2_refuses_inputs_that_no_group_divides():
    with pytest.raises(ModelError, match="7 inputs"):
        Kit().shelves.quantizers["int2"].resolve()().convert(nn.Linear(7, 4).requires_grad_(False), CPU)


# -- in the model ------------------------------------------------------------------------------------------------


def gradient(denoiser, adapter, dtype):
    adapter.grad.zero_()
    for noisy, t, batch in inputs(3, dtype):
        denoiser.predict(noisy, t, batch).float().square().mean().backward()
    return adapter.grad.clone()


def shaken(loaded_):
    chance = torch.Generator().manual_seed(9)
    loaded_[1].flat.data += 0.02 * torch.randn(loaded_[1].flat.shape, generator=chance)
    return loaded_


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_gradients_of_the_adapter_against_full_precision(name, tmp_path, pictures, precision):
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    train = {"precision": precision}
    full = gradient(*shaken(loaded(make_plan(tmp_path / "runs", pictures))), torch.float32)
    found = gradient(*shaken(loaded(quantized(name, tmp_path, pictures, train=train))), dtype)
    cosine = torch.cosine_similarity(full, found, dim=0)
    assert cosine > {"int8": 0.99, "int8-fast": 0.99, "int4": 0.94, "int2": 0.5}[name]


def test_gradients_survive_a_preview_in_between(name, tmp_path, pictures):
    """bitsandbytes' own 4-bit layer repacks itself in the preview and gives no gradient from then on."""
    denoiser, adapter = shaken(loaded(quantized(name, tmp_path, pictures)))
    denoiser.module.train()
    before = gradient(denoiser, adapter, torch.float32)
    denoiser.module.eval()
    answers(denoiser)
    denoiser.module.train()
    assert before.norm() > 0
    assert torch.equal(gradient(denoiser, adapter, torch.float32), before)


def test_recomputing_activations_changes_nothing(name, tmp_path, pictures):
    denoiser, adapter = shaken(loaded(quantized(name, tmp_path, pictures)))
    before = gradient(denoiser, adapter, torch.float32)
    Recomputing(denoiser.blocks, keeps_random_state=False)
    assert error(gradient(denoiser, adapter, torch.float32), before) < 1e-5


def test_spared_layers_are_held_by_the_finer_quantizer_and_checked(tmp_path, pictures):
    plan = quantized("int2", tmp_path, pictures)
    denoiser, adapter = loaded(plan)
    context = context_of(plan)
    quantizer, spared = holders(context)
    assert spared
    assert type(denoiser.blocks[0].img_mod[1]).__name__ == "Int4Linear"
    counted, astray = held(denoiser.blocks, quantizer, spared)
    assert (counted, astray) == (56, 0)
    denoiser.blocks[0].img_mod[1] = nn.Linear(128, 768).requires_grad_(False)
    with pytest.raises(ModelError, match="1 of 56"):
        check_facts(plan, denoiser, adapter, quantizer, spared)


def test_quantize_leaves_spared_layers_to_others():
    shelf = Kit().shelves.quantizers
    int8, keep = (shelf[name].resolve()() for name in ("int8", "none"))
    block = nn.ModuleDict({"a": nn.Linear(8, 8), "mod": nn.Sequential(nn.SiLU(), nn.Linear(8, 8))})
    assert quantize(block, int8, CPU, {"mod.1": keep}) == 2
    assert type(block["mod"][1]) is nn.Linear
    assert held([block], int8, {"mod.1": keep}) == (2, 0)
    assert held([block], int8) == (1, 1)


@pytest.mark.slow
def test_a_run_with_previews_stops_and_resumes(name, tmp_path, pictures):
    kit = Kit()
    plan = quantized(
        name,
        tmp_path,
        pictures,
        name="run",
        train={"updates": 4, "gradient_checkpointing": True},
        sampling={"every": 2, "strengths": [], "steps": 2, "prompts": ["a red circle"]},
        save={"every": 2},
    )
    events = []
    run = kit.train(plan)
    for event in run:
        events.append(event)
        if isinstance(event, CheckpointSaved):
            run.close()
    more = list(kit.resume(plan.folder))
    assert any(isinstance(event, PreviewDrawn) for event in more)
    assert isinstance(more[-1], RunFinished)
    assert "scale 1.000" in more[-1].proof


# -- refusals ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", ["int4", "int2"])
def test_few_bits_are_refused_without_recovery(tmp_path, pictures, bits):
    with pytest.raises(RuleError, match=r"lorakit recover --family qwen.*uncorrected = true"):
        make_plan(tmp_path, pictures, quantization={"name": bits})


@pytest.mark.parametrize("name", ["int8", "int4", "int2"])
def test_a_missing_package_is_a_problem(name, tmp_path, pictures, monkeypatch):
    package = {"int2": "optimum.quanto"}.get(name, "bitsandbytes")
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda one: None if one == package else real(one))
    (problem,) = quantized(name, tmp_path, pictures).errors
    assert f"{name} needs {package}" in problem.message
    assert f"pip install {'optimum-quanto' if name == 'int2' else 'bitsandbytes'}" in problem.message
