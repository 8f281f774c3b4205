"""Faster ways change no result: fused adapters, blocks that recompute, code that is compiled."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from lorakit.engine import compiling, faster, memory
from lorakit.engine.adapter import Adapter, attach
from lorakit.engine.frozen import FrozenLinear
from lorakit.engine.recomputing import Fit, Recomputing
from lorakit.errors import ConfigError, ModelError
from lorakit.estimate.model import size_of
from lorakit.estimate.space import fitting, needed
from lorakit.events import PhaseFinished, UpdateFinished, Warned
from lorakit.order import Turn
from lorakit.planned import PlannedLora

CPU = torch.device("cpu")
TOKENS = 7


class Held(FrozenLinear):
    """A layer that is no plain one."""

    packed = ("weight",)

    def restored(self, dtype):
        return self.weight.to(dtype)


class Attention(nn.Module):
    """Queries, keys and values of one input, and what they give; `crosses` takes keys and values of another."""

    def __init__(self, quantized: bool, crosses: bool) -> None:
        super().__init__()
        self.crosses = crosses
        for name in ("to_q", "to_k", "to_v", "to_out"):
            linear = nn.Linear(24, 24, bias=name != "to_k")
            setattr(self, name, Held(linear, {"weight": linear.weight.detach()}) if quantized else linear)

    def forward(self, x):
        other = x.flip(-1) if self.crosses else x
        q, k, v = self.to_q(x), self.to_k(other), self.to_v(other)
        return x + self.to_out(torch.tanh(q * k) + v)


def adapted(
    fused: bool, *, quantized: bool = False, crosses: bool = False, dtype=torch.float32
) -> tuple[nn.Module, Adapter]:
    torch.manual_seed(0)
    module = nn.Sequential(*(Attention(quantized, crosses) for _ in range(3))).to(dtype)
    denoiser = SimpleNamespace(module=module, blocks=list(module), component="small")
    settings = PlannedLora(rank=4, alpha=2.0, targets=("to_q", "to_k", "to_v", "to_out"))
    adapter = attach(denoiser, settings, 3, CPU, fused=fused)
    adapter.flat.data.normal_(std=0.2, generator=torch.Generator().manual_seed(1))
    return module, adapter


def passes(module: nn.Module, adapter: Adapter, count: int = 3, dtype=torch.float32):
    """Answers of some passes, and the gradients that gathered."""
    answers = []
    for number in range(count):
        adapter.train()
        x = torch.randn(2, TOKENS + number, 24, generator=torch.Generator().manual_seed(number)).to(dtype)
        answers.append(module(x))
        answers[-1].float().square().mean().backward()
    return answers, adapter.grad.clone()


@pytest.mark.parametrize("quantized", [False, True])
@pytest.mark.parametrize("crosses", [False, True])
def test_fused_layers_answer_and_learn_as_plain_ones(quantized, crosses):
    found, wanted = (passes(*adapted(fused, quantized=quantized, crosses=crosses)) for fused in (True, False))
    for one, other in zip(found[0], wanted[0], strict=True):
        assert torch.allclose(one, other, rtol=1e-5, atol=1e-5)
    assert wanted[1].abs().max() > 1e-3
    assert (found[1] - wanted[1]).norm() < 1e-5 * wanted[1].norm()


def test_fused_layers_in_bf16_are_as_near_to_fp32_as_plain_ones():
    exact = passes(*adapted(False))[1]
    away = [
        (passes(*adapted(fused, dtype=torch.bfloat16), dtype=torch.bfloat16)[1] - exact).norm() / exact.norm()
        for fused in (True, False)
    ]
    assert away[0] < 1.2 * away[1] < 0.05


def test_layers_of_one_input_answer_together_and_others_do_not(monkeypatch):
    from lorakit.engine import lora_linear

    asked, apply = [], lora_linear._Together.apply
    monkeypatch.setattr(
        lora_linear._Together, "apply", lambda x, a, few, s: asked.append(len(few.layers)) or apply(x, a, few, s)
    )
    module, adapter = adapted(True)
    passes(module[:1], adapter, 2)
    assert asked == [1, 1, 1, 1, 3, 1]  # what they are given is seen in the first pass
    asked.clear()
    module, adapter = adapted(True, crosses=True)
    passes(module[:1], adapter, 2)
    assert asked[4:] == [1, 2, 1]


def test_a_layer_that_is_called_otherwise_than_at_first_answers_by_itself():
    results = []
    for fused in (True, False):
        module, adapter = adapted(fused)
        passes(module, adapter, 2)
        module[0].crosses = True
        results.append(passes(module, adapter, 2))
    assert torch.allclose(results[0][0][1], results[1][0][1], rtol=1e-5, atol=1e-5)
    assert torch.allclose(results[0][1], results[1][1], rtol=1e-4, atol=1e-6)


def test_blocks_that_recompute_in_the_first_pass_do_as_they_did(monkeypatch):
    """Layers begin to answer together between two updates, never between a pass and its backward pass."""
    found = []
    for recomputes in (True, False):
        module, adapter = adapted(True)
        if recomputes:
            Recomputing(list(module), keeps_random_state=False)
        found.append(passes(module, adapter)[1])
    assert torch.equal(*found)


def test_fused_layers_hold_no_activations_after_a_pass():
    module, adapter = adapted(True)
    passes(module, adapter)
    assert all(layer._around[1]._input is None and not layer._around[1]._ready for layer in adapter.layers.values())


def test_fused_layers_follow_strength_and_other_weights():
    module, adapter = adapted(True)
    plain, other = adapted(False)
    x = torch.randn(1, TOKENS, 24)
    with torch.no_grad():
        for strength in (0.0, 0.5, 1.0):
            with adapter.at(strength), other.at(strength):
                assert torch.allclose(module(x), plain(x), atol=1e-5)
        with adapter.at(1.0, torch.zeros_like(adapter.flat)), other.at(0.0):
            assert torch.allclose(module(x), plain(x), atol=1e-6)


def test_training_is_the_same_within_rounding(make_plan, make_trainer, samples):
    ends = []
    for fused in (True, False):
        trainer = make_trainer(make_plan(optimizer={"learning_rate": 1e-4}), noise=0.02)
        trainer.adapter.fused = fused
        losses = [trainer.update([Turn((0, 4), 2 * number, 0)], samples).loss for number in range(4)]
        ends.append(torch.tensor(losses))
    assert torch.allclose(*ends, rtol=1e-5)


# -- recomputing -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fused", [True, False])
def test_however_many_blocks_recompute_gradients_are_the_same_to_the_bit(make_plan, make_trainer, samples, fused):
    found = []
    for count in (None, 0, 1, 3, 4, 99):
        trainer = make_trainer(make_plan(), noise=0.05)
        trainer.adapter.fused = fused
        if count is not None:
            Recomputing(trainer.denoiser.blocks, keeps_random_state=False, count=count)
        trainer.adapter.train()
        for number in range(2):
            trainer.loss(Turn((0, 4), number, 0), samples).mean().backward()
        found.append(trainer.adapter.grad.clone())
    assert found[0].any()
    assert all(torch.equal(found[0], one) for one in found)


def fit_of(plan, family, room, held=0.0):
    blocks = nn.ModuleList(nn.Identity() for _ in range(4))
    recomputing = Recomputing(blocks, keeps_random_state=False)
    size = size_of(plan, family)
    assert size.blocks == 4
    return Fit(plan, size, recomputing, room, held), recomputing, size


@pytest.fixture
def thrifty(make_plan):
    return make_plan(train={"gradient_checkpointing": True}, model={"device": "auto"})


def test_as_few_blocks_recompute_as_memory_asks(thrifty, family):
    assert thrifty.settings.speed.recompute == "fit"
    size = size_of(thrifty, family)
    takes = [needed(thrifty, size, count) for count in range(5)]
    assert takes[1:] == sorted(takes[1:], reverse=True)
    assert fitting(thrifty, size, takes[0]) == 0
    assert fitting(thrifty, size, takes[2]) == 2
    assert fitting(thrifty, size, takes[4] - 1) == 4
    fit, recomputing, _ = fit_of(thrifty, family, takes[2] / 0.92 + 1)
    assert recomputing.count == 2
    assert "2 of 4 blocks recompute" in fit.said


def test_the_first_updates_correct_it_once_every_kind_of_batch_was_seen(thrifty, family):
    takes = [needed(thrifty, size_of(thrifty, family), count) for count in range(5)]
    fit, recomputing, _ = fit_of(thrifty, family, takes[2] / 0.92 + 1, held=1000.0)
    kinds = [name for name, _ in thrifty.arithmetic.buckets]
    assert len(kinds) == 3
    assert fit.after(3, kinds[:2], 1000 + takes[2] / 4) == ""
    assert "0 of 4 blocks recompute, 2 before: a batch takes 0.25" in fit.after(4, kinds, 1000 + takes[2] / 4)
    assert recomputing.count == 0
    assert fit.after(5, kinds, 1000 + 9 * takes[2]) == ""  # once


def test_more_than_estimated_makes_more_blocks_recompute(thrifty, family):
    takes = [needed(thrifty, size_of(thrifty, family), count) for count in range(5)]
    fit, recomputing, _ = fit_of(thrifty, family, takes[0] * 2)
    fit.after(3, [name for name, _ in thrifty.arithmetic.buckets], 20 * takes[0])
    assert recomputing.count == 4
    assert fit.exhausted() == ""


def test_where_memory_runs_out_all_blocks_recompute_and_the_update_is_made_again(kit, thrifty, monkeypatch, of_kind):
    monkeypatch.setattr(memory, "free", lambda device: 10**12)
    straight = list(kit.train(thrifty.with_settings(name="straight")))
    (note,) = (one.note for one in of_kind(straight, PhaseFinished) if one.phase == "fit")
    assert "0 of 4 blocks recompute" in note

    from lorakit.engine.loop import Trainer

    loss, calls = Trainer.loss, []

    def short(self, turn, samples):
        calls.append(turn)
        if len(calls) == 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return loss(self, turn, samples)

    monkeypatch.setattr(Trainer, "loss", short)
    again = list(kit.train(thrifty))
    assert "ran out with 0 of 4" in "".join(one.message for one in of_kind(again, Warned))
    found, wanted = ([one.loss for one in of_kind(some, UpdateFinished)] for some in (again, straight))
    assert found == wanted


def test_the_planned_number_of_blocks_recomputes(make_plan, context_for, drained):
    from lorakit.engine.loading import load_model

    plan = make_plan(train={"gradient_checkpointing": True}, speed={"recompute": 2})
    assert drained(load_model(context_for(plan))).recomputing.count == 2
    plan = make_plan(train={"gradient_checkpointing": True}, speed={"recompute": 0})
    assert drained(load_model(context_for(plan))).recomputing is None


# -- compiling ---------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # torch's own, which it hides from people
def test_compiled_blocks_give_equal_losses_and_gradients(make_plan, make_trainer, samples):
    """By the compiler's front half; benchmarks/step.py holds generated code against the plain loop."""
    found = []
    for compiled in (False, True):
        trainer = make_trainer(make_plan(), noise=0.05)
        trainer.adapter.fused = False
        if compiled:
            compiling.compile_blocks(trainer.denoiser.blocks, backend="aot_eager")
        trainer.adapter.train()
        losses = [trainer.loss(Turn((0, 4), number, 0), samples).mean() for number in range(2)]
        sum(losses).backward()
        found.append((torch.stack(losses).detach(), trainer.adapter.grad.clone()))
    assert torch.allclose(found[0][0], found[1][0], rtol=1e-5)
    assert (found[0][1] - found[1][1]).norm() < 1e-5 * found[0][1].norm()


def test_compiling_is_a_phase_that_leaves_nothing_behind(kit, make_plan, monkeypatch, of_kind):
    compiled = []
    monkeypatch.setattr(compiling, "compile_blocks", lambda blocks: compiled.append(len(blocks)))
    plain = make_plan(name="plain", train={"updates": 2}, speed={"adapter": "plain"})
    plan = make_plan(train={"updates": 2}, speed={"compile": "blocks"})
    assert plan.settings.speed.adapter == "plain"
    events, wanted = list(kit.train(plan)), list(kit.train(plain))
    (note,) = (one.note for one in of_kind(events, PhaseFinished) if one.phase == "compile")
    assert (note, compiled) == ("2 forms of batches", [4])
    assert [one.loss for one in of_kind(events, UpdateFinished)] == [
        one.loss for one in of_kind(wanted, UpdateFinished)
    ]


def test_blocks_that_cannot_be_compiled_are_told(kit, make_plan, monkeypatch):
    class CompilerError(Exception):
        __module__ = "torch._dynamo.exc"

    def fails(self, turn, samples):
        raise CompilerError("no C++ compiler\nand much more")

    monkeypatch.setattr(compiling, "compile_blocks", lambda blocks: None)
    monkeypatch.setattr("lorakit.engine.loop.Trainer.pass_through", fails)
    with pytest.raises(ModelError, match=r"cannot be compiled.*no C\+\+ compiler.*speed\.compile = 'off'"):
        list(kit.train(make_plan(speed={"compile": "blocks"})))


def test_auto_compiles_on_cuda_only(monkeypatch):
    cuda = torch.device("cuda")
    monkeypatch.setattr(compiling.importlib.util, "find_spec", lambda name: name)
    assert compiling.wanted("auto", cuda)
    assert not compiling.wanted("auto", CPU)
    assert compiling.wanted("blocks", CPU)
    assert not compiling.wanted("off", cuda)
    monkeypatch.setattr(compiling.importlib.util, "find_spec", lambda name: None)
    assert not compiling.wanted("auto", cuda)


# -- the plan ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tables", "says"),
    [
        (
            {"speed": {"adapter": "fused", "compile": "blocks"}},
            r"speed\.adapter = 'fused' would have no effect.*compile",
        ),
        ({"speed": {"adapter": "fused"}, "lora": {"dropout": 0.1}}, r"no effect.*lora\.dropout = 0\.1"),
        (
            {"speed": {"offload": 2, "compile": "blocks"}, "train": {"gradient_checkpointing": True}},
            r"speed\.offload needs speed\.compile = 'off'.*travel",
        ),
        (
            {"speed": {"offload": 2, "recompute": 3}, "train": {"gradient_checkpointing": True}},
            r"speed\.offload needs speed\.recompute = 'all'",
        ),
        ({"speed": {"recompute": 3}}, r"speed\.recompute would have no effect.*gradient_checkpointing is off"),
    ],
)
def test_ways_that_exclude_each_other_are_refused(make_plan, tables, says):
    with pytest.raises(ConfigError, match=says):
        make_plan(**tables)


def test_the_plan_says_which_and_why(make_plan):
    choices = make_plan().choices
    assert choices["speed.adapter"].value == "fused"
    assert choices["speed.compile"].value == "off"
    assert choices["speed.recompute"].because == "of none: train.gradient_checkpointing is off"
    assert make_plan(lora={"dropout": 0.1}).choices["speed.adapter"].value == "plain"
    on_cpu = make_plan(train={"gradient_checkpointing": True}, model={"device": "cpu"})
    assert (on_cpu.settings.speed.recompute, faster.STATE) == ("all", 8.0)
