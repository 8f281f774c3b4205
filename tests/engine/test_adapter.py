"""The adapter: where it stands, how it starts, what it answers and what it leaves alone."""

from __future__ import annotations

import math
from types import SimpleNamespace

import peft
import pytest
import torch
from torch import nn

from lorakit.engine.adapter import Host, attach
from lorakit.errors import ModelError
from lorakit.order import Turn
from lorakit.planned import PlannedLora

CPU = torch.device("cpu")


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attn = nn.ModuleDict({"to_q": nn.Linear(24, 16), "to_out": nn.ModuleList([nn.Linear(16, 24)])})
        self.norm = nn.LayerNorm(24)

    def forward(self, x):
        return x + self.attn["to_out"][0](torch.tanh(self.attn["to_q"](self.norm(x))))


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block(), Block()])
        self.to_q = nn.Linear(24, 24)  # outside the blocks: never adapted

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return self.to_q(x)


def small(seed: int = 0):
    torch.manual_seed(seed)
    module = Small()
    return SimpleNamespace(module=module, blocks=module.blocks, component="small")


def settings(**options) -> PlannedLora:
    return PlannedLora(**{"rank": 4, "alpha": 4.0, "targets": ("attn.to_q", "attn.to_out.0"), **options})


def lively(denoiser, **options):
    """An adapter whose B is not zero any more."""
    adapter = attach(denoiser, settings(**options), 3, CPU)
    adapter.flat.data.normal_(std=0.3, generator=torch.Generator().manual_seed(1))
    return adapter


def test_layers_are_named_as_the_model_names_them():
    adapter = attach(small(), settings(), 0, CPU)
    assert list(adapter.layers) == [
        "small.blocks.0.attn.to_q",
        "small.blocks.0.attn.to_out.0",
        "small.blocks.1.attn.to_q",
        "small.blocks.1.attn.to_out.0",
    ]
    assert {name: (tuple(a.shape), tuple(b.shape)) for name, a, b in adapter.pairs()} == {
        name: ((4, 24), (16, 4)) if name.endswith("to_q") else ((4, 16), (24, 4)) for name in adapter.layers
    }


def test_a_target_may_be_the_end_of_a_name():
    assert list(attach(small(), settings(targets=("to_q",)), 0, CPU).layers) == [
        "small.blocks.0.attn.to_q",
        "small.blocks.1.attn.to_q",
    ]


def test_an_unknown_target_is_refused_with_the_layers_there_are():
    with pytest.raises(ModelError, match=r"to_z.*lora\.targets.*attn\.to_out\.0, attn\.to_q"):
        attach(small(), settings(targets=("attn.to_q", "to_z")), 0, CPU)


def test_a_starts_uniform_from_the_seed_and_b_at_zero():
    adapter = attach(small(), settings(rank=16), 7, CPU)
    for name, lora_a, lora_b in adapter.pairs():
        limit = 1 / math.sqrt(lora_a.shape[1])
        assert lora_a.abs().max() <= limit, name
        assert lora_a.std() == pytest.approx(limit / math.sqrt(3), rel=0.15)  # uniform, not normal
        assert not lora_b.any()
    again, other = attach(small(), settings(rank=16), 7, CPU), attach(small(), settings(rank=16), 8, CPU)
    assert torch.equal(adapter.flat, again.flat)
    assert not torch.equal(adapter.flat, other.flat)


def test_an_untrained_adapter_changes_nothing():
    denoiser, x = small(), torch.randn(2, 5, 24)
    before = denoiser.module(x)
    attach(denoiser, settings(), 0, CPU)
    assert torch.equal(denoiser.module(x), before)


def test_strength_scales_the_effect_and_is_put_back():
    denoiser, x = small(), torch.randn(2, 5, 24)
    layer_of = denoiser.blocks[0].attn
    base = layer_of["to_q"](x)
    adapter = lively(denoiser, alpha=2.0)
    layer = layer_of["to_q"]
    effect = (x @ layer.lora_A.T @ layer.lora_B.T) * 0.5  # alpha / rank
    with torch.no_grad():
        assert torch.allclose(layer(x), base + effect, atol=1e-6)
        with adapter.at(0.5):
            assert torch.allclose(layer(x), base + effect / 2, atol=1e-6)
        with adapter.at(0.0):
            assert torch.equal(layer(x), base)
        with adapter.at(1.0, torch.zeros_like(adapter.flat)):
            assert torch.equal(layer(x), base)
        assert torch.allclose(layer(x), base + effect, atol=1e-6)


def test_pairs_have_the_scale_folded_in():
    adapter = lively(small(), alpha=1.0)
    layer = adapter.layers["small.blocks.0.attn.to_q"]
    _, lora_a, lora_b = next(iter(adapter.pairs()))
    assert torch.equal(lora_a, layer.lora_A)
    assert torch.equal(lora_b, layer.lora_B * 0.25)


def test_dropout_acts_in_training_only():
    denoiser, x = small(), torch.randn(2, 5, 24)
    lively(denoiser, dropout=0.5)
    denoiser.module.eval()
    assert torch.equal(denoiser.module(x), denoiser.module(x))
    denoiser.module.train()
    assert not torch.equal(denoiser.module(x), denoiser.module(x))


def test_one_buffer_is_behind_all_weights_and_one_behind_all_gradients():
    denoiser = small()
    adapter = lively(denoiser)
    halves = [half for layer in adapter.layers.values() for half in (layer.lora_A, layer.lora_B)]
    assert torch.equal(torch.cat([half.detach().flatten() for half in halves]), adapter.flat.detach())
    adapter.flat.data.add_(1)
    assert torch.equal(torch.cat([half.detach().flatten() for half in halves]), adapter.flat.detach())

    for _ in range(2):  # gradients gather in the buffer, and go on gathering
        denoiser.module(torch.randn(2, 5, 24)).square().mean().backward()
        gathered = torch.cat([half.grad.flatten() for half in halves])
        assert adapter.grad.any()
        assert torch.equal(gathered, adapter.grad)
        assert halves[0].grad.untyped_storage().data_ptr() == adapter.grad.untyped_storage().data_ptr()


@pytest.mark.parametrize("alpha", [2.0, 4.0, 8.0])
def test_answers_and_gradients_equal_pefts(alpha):
    ours, theirs = small(), small()
    adapter = lively(ours, alpha=alpha)
    config = peft.LoraConfig(r=4, lora_alpha=alpha, target_modules=r"blocks\..*(to_q|to_out\.0)")
    model = peft.inject_adapter_in_model(config, theirs.module)
    twins = {f"small.{name}": module for name, module in model.named_modules() if hasattr(module, "lora_A")}
    assert list(twins) == list(adapter.layers)
    for name, layer in adapter.layers.items():
        twins[name].lora_A["default"].weight.data.copy_(layer.lora_A)
        twins[name].lora_B["default"].weight.data.copy_(layer.lora_B)

    x = torch.randn(2, 5, 24)
    one, other = ours.module(x), model(x)
    assert torch.allclose(one, other, atol=1e-6)
    one.square().mean().backward()
    other.square().mean().backward()
    for name, layer in adapter.layers.items():
        assert torch.allclose(layer.lora_A.grad, twins[name].lora_A["default"].weight.grad, atol=1e-6)
        assert torch.allclose(layer.lora_B.grad, twins[name].lora_B["default"].weight.grad, atol=1e-6)


def test_training_moves_the_adapter_and_leaves_the_base_to_the_bit(make_plan, make_trainer, samples):
    trainer = make_trainer(make_plan())
    module, adapter = trainer.denoiser.module, trainer.adapter
    own = {id(half) for layer in adapter.layers.values() for half in (layer.lora_A, layer.lora_B)}
    base = {name: one for name, one in module.named_parameters() if id(one) not in own}
    before = {name: one.detach().clone() for name, one in base.items()}
    start = adapter.flat.detach().clone()
    assert not any(one.requires_grad for one in base.values())
    for number in range(2):
        trainer.update([Turn((number,), number, 0)], samples)
    assert (adapter.flat != start).float().mean() > 0.9
    assert all(torch.equal(one, before[name]) for name, one in base.items())
    assert all(one.grad is None for one in base.values())


# -- several hosts -----------------------------------------------------------------------------------------------


def two_hosts(share: float):
    """An adapter on the denoiser, and on a second model that learns at `share` of its rate."""
    other = Small()
    host = Host("words", other, (other,), ("attn.to_q",), share)
    denoiser = small()
    return denoiser, other, attach(denoiser, settings(targets=("attn.to_q",)), 0, CPU, (host,))


def test_a_second_host_has_a_part_of_its_own():
    _, _, adapter = two_hosts(0.5)
    names = [f"{host}.blocks.{number}.attn.to_q" for host in ("small", "words") for number in (0, 1)]
    assert list(adapter.layers) == names
    assert [part.share for part in adapter.parts] == [1.0, 0.5]
    assert torch.equal(torch.cat([part.weights.detach() for part in adapter.parts]), adapter.flat.detach())


def test_parts_learn_at_their_own_rates():
    """The first step of AdamW is the learning rate, whatever the gradient's size."""
    denoiser, other, adapter = two_hosts(0.25)
    optimizer = torch.optim.AdamW([part.group for part in adapter.parts], weight_decay=0)
    x, before = torch.randn(2, 5, 24), adapter.flat.detach().clone()
    (denoiser.module(x).square().mean() + other(x).square().mean()).backward()
    for group in optimizer.param_groups:
        group["lr"] = 0.01 * group["share"]
    optimizer.step()
    moved, size = (adapter.flat.detach() - before).abs(), adapter.parts[0].weights.numel()
    assert float(moved[:size].max()) == pytest.approx(0.01, rel=1e-3)
    assert float(moved[size:].max()) == pytest.approx(0.0025, rel=1e-3)
