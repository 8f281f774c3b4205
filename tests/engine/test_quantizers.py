"""int8 holds the base in 8 bits, errs by about a per cent, and lets gradients through to the adapter."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from lorakit.engine.adapter import attach
from lorakit.engine.loading import check_facts
from lorakit.engine.quantizers import held, quantize
from lorakit.errors import ModelError
from lorakit.order import Turn

CPU = torch.device("cpu")


@pytest.fixture
def int8(kit):
    return kit.shelves.quantizers["int8"].resolve()()


@pytest.fixture
def keep(kit):
    return kit.shelves.quantizers["none"].resolve()()


def error(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found.float() - wanted.float()).norm() / wanted.float().norm())


def linear(bias: bool = True) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(256, 512, bias=bias).requires_grad_(False)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_answers_and_gradients_err_by_a_per_cent(int8, dtype, bias):
    plain = linear(bias)
    made = int8.convert(linear(bias).to(dtype), CPU)
    x, y = (torch.randn(8, 256, generator=torch.Generator().manual_seed(1)).requires_grad_() for _ in range(2))
    wanted, found = plain(x), made(y.to(dtype))
    assert found.dtype == dtype
    assert 0 < error(found.detach(), wanted.detach()) < 0.01
    wanted.square().sum().backward()
    found.float().square().sum().backward()
    assert error(y.grad, x.grad) < 0.015


def test_the_weight_is_int8_and_frozen(int8):
    made = int8.convert(linear(), CPU)
    assert made.weight.dtype == torch.int8
    assert not any(one.requires_grad for one in made.parameters())
    assert (made.in_features, made.out_features) == (256, 512)


def test_large_bf16_activations_stay_finite(int8):
    x = torch.full((2, 256), 1e5, dtype=torch.bfloat16)  # over fp16's range
    assert torch.isfinite(int8.convert(linear().bfloat16(), CPU)(x)).all()


def test_every_linear_layer_of_a_block_is_converted(int8, keep):
    block = nn.ModuleDict({"a": nn.Linear(8, 8), "b": nn.Sequential(nn.Linear(8, 4), nn.LayerNorm(4))})
    assert held([block], int8) == (0, 2)
    assert quantize(block, int8, CPU) == 2
    assert held([block], int8) == (2, 0)
    assert held([block], keep) == (0, 0)


def test_an_adapter_on_int8_gets_the_gradients_of_one_on_the_full_base(make_plan, make_trainer, samples, int8):
    plan = make_plan()
    full, small = make_trainer(plan, noise=0.05), make_trainer(plan, noise=0.05)
    for layer in small.adapter.layers.values():
        layer.base = int8.convert(layer.base, CPU)
    for block in small.denoiser.blocks:
        quantize(block, int8, CPU)
    for trainer in (full, small):
        trainer.loss(Turn((0, 3), 4, 0), samples).mean().backward()
    cosine = torch.cosine_similarity(full.adapter.grad, small.adapter.grad, dim=0)
    assert cosine > 0.99
    assert not torch.equal(full.adapter.grad, small.adapter.grad)


# -- promises ----------------------------------------------------------------------------------------------------


@pytest.fixture
def denoiser():
    blocks = nn.ModuleList([nn.ModuleDict({"to_q": nn.Linear(16, 16), "to_k": nn.Linear(16, 16)}) for _ in range(2)])
    return SimpleNamespace(
        module=nn.ModuleDict({"blocks": blocks, "out": nn.Linear(16, 4)}), blocks=blocks, component="it"
    )


def adapted(denoiser, plan):
    return attach(denoiser, plan.settings.lora.model_copy(update={"targets": ("to_q",)}), 0, CPU)


def test_what_was_planned_passes(make_plan, denoiser, int8):
    plan = make_plan(quantization={"name": "int8"})
    for block in denoiser.blocks:
        quantize(block, int8, CPU)
    check_facts(plan, denoiser, adapted(denoiser, plan), int8)


def test_a_base_that_is_not_quantized_is_refused(make_plan, denoiser, int8):
    plan = make_plan(quantization={"name": "int8"})
    quantize(denoiser.blocks[0], int8, CPU)
    with pytest.raises(ModelError, match=r"plan says int8, and 2 of 4 layers"):
        check_facts(plan, denoiser, adapted(denoiser, plan), int8)


def test_anything_but_the_adapter_that_would_be_trained_is_refused(make_plan, denoiser, keep):
    plan = make_plan()
    adapter = adapted(denoiser, plan)
    denoiser.module["out"].bias.requires_grad_(True)
    with pytest.raises(ModelError, match=r"out\.bias would be trained"):
        check_facts(plan, denoiser, adapter, keep)


def test_an_adapter_on_nothing_is_refused(make_plan, denoiser, keep):
    plan = make_plan()
    adapter = adapted(denoiser, plan)
    adapter.layers.clear()
    denoiser.module.requires_grad_(False)
    with pytest.raises(ModelError, match=r"stands on no layer.*lora\.targets"):
        check_facts(plan, denoiser, adapter, keep)
