"""The update: averaging, checkpointing of activations, running average, caption dropout, levels, bad numbers."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from lorakit.engine.draws import draw
from lorakit.engine.recomputing import Recomputing
from lorakit.engine.schedulers import FlowMatch
from lorakit.errors import TrainingError
from lorakit.order import Turn
from lorakit.planned import PlannedScheduler
from lorakit_qwen import Qwen

# -- averaging ---------------------------------------------------------------------------------------------------


def test_accumulation_of_singles_equals_one_batch(make_plan, make_trainer, samples):
    """Also where the last batch of an update is smaller: every picture counts the same."""
    plan = make_plan(optimizer={"learning_rate": 1e-4})
    single, whole, uneven = (make_trainer(plan, noise=0.02) for _ in range(3))
    for number in range(4):
        first = 4 * number
        ones = [Turn((index,), first + index, 0) for index in range(4)]
        single.update(ones, samples)
        whole.update([Turn((0, 1, 2, 3), first, 0)], samples)
        uneven.update([Turn((0, 1, 2), first, 0), Turn((3,), first + 3, 0)], samples)
    assert single.updates == 4
    start = make_trainer(plan, noise=0.02).adapter.flat
    assert (single.adapter.flat - start).abs().max() > 1e-4
    assert (single.adapter.flat - whole.adapter.flat).abs().max() < 1e-6
    assert (single.adapter.flat - uneven.adapter.flat).abs().max() < 1e-6


def test_gradient_checkpointing_gives_equal_gradients(make_plan, make_trainer, samples):
    turn = Turn((0, 4), 11, 0)
    plain, thrifty = make_trainer(make_plan(), noise=0.05), make_trainer(make_plan(), noise=0.05)
    Recomputing(thrifty.denoiser.blocks, keeps_random_state=False)
    for trainer in (plain, thrifty):
        trainer.denoiser.module.train()
        trainer.loss(turn, samples).mean().backward()
    assert plain.adapter.grad.any()
    assert torch.allclose(plain.adapter.grad, thrifty.adapter.grad, rtol=1e-5, atol=1e-8)


def test_gradient_checkpointing_draws_the_same_dropout_twice(make_plan, make_trainer, samples):
    turn = Turn((0, 4), 11, 0)
    gradients = []
    for keeps in (None, True):
        trainer = make_trainer(make_plan(lora={"dropout": 0.5}), noise=0.05)
        if keeps is not None:
            Recomputing(trainer.denoiser.blocks, keeps_random_state=keeps)
        trainer.denoiser.module.train()
        torch.manual_seed(0)
        trainer.loss(turn, samples).mean().backward()
        gradients.append(trainer.adapter.grad.clone())
    assert torch.allclose(*gradients, rtol=1e-5, atol=1e-8)


def test_a_long_gradient_is_shortened(make_plan, make_trainer, samples):
    limited = make_trainer(make_plan(train={"max_grad_norm": 1e-3}), noise=0.05)
    free = make_trainer(make_plan(train={"max_grad_norm": 0.0}), noise=0.05)
    turn = [Turn((0,), 0, 0)]
    step, unlimited = limited.update(turn, samples), free.update(turn, samples)
    assert step.grad_norm == pytest.approx(unlimited.grad_norm)  # what is told is the length before
    assert step.grad_norm > 1e-2
    assert float(limited.adapter.grad.norm()) == pytest.approx(1e-3, rel=1e-3)
    assert float(free.adapter.grad.norm()) == pytest.approx(unlimited.grad_norm)


def test_the_planned_learning_rate_is_what_the_optimizer_uses(make_plan, make_trainer, samples):
    plan = make_plan(optimizer={"learning_rate": 1e-3, "warmup": 2}, train={"updates": 4})
    trainer = make_trainer(plan)
    found = [trainer.update([Turn((0,), number, 0)], samples).learning_rate for number in range(3)]
    assert found == pytest.approx([5e-4, 1e-3, 1e-3])
    assert trainer.optimizer.param_groups[0]["lr"] == pytest.approx(1e-3)


# -- the running average -----------------------------------------------------------------------------------------


def test_the_average_warms_up(make_plan, make_trainer, samples):
    trainer = make_trainer(make_plan(train={"ema": 0.3, "updates": 10}))
    expected = trainer.adapter.flat.detach().double().clone()
    for update in range(1, 6):
        trainer.update([Turn((0,), update, 0)], samples)
        decay = min(0.3, (1 + update) / (10 + update))
        expected = decay * expected + (1 - decay) * trainer.adapter.flat.detach().double()
    assert torch.allclose(trainer.average.double(), expected, atol=1e-7)
    assert not torch.allclose(trainer.average, trainer.adapter.flat, atol=1e-5)


def test_there_is_no_average_unless_asked_for(make_plan, make_trainer):
    assert make_trainer(make_plan()).average is None


# -- captions ----------------------------------------------------------------------------------------------------


def shown_lengths(trainer, samples, passes: int) -> list[int]:
    """Text lengths that the model is shown, pass by pass."""
    seen: list[int] = []

    def predict(noisy, t, batch):
        seen.extend(batch.text.lengths)
        return noisy

    trainer.denoiser.predict = predict
    for first in range(0, passes, 50):
        trainer.loss(Turn((3,) * 50, first, 0), samples)
    return seen


def test_captions_are_dropped_at_the_asked_rate(make_plan, make_trainer, samples, empty):
    trainer = make_trainer(make_plan(train={"caption_dropout": 0.2}))
    seen = shown_lengths(trainer, samples, 2000)
    own = samples(3).text.lengths[0]
    assert set(seen) == {own, empty.lengths[0]}
    assert seen.count(empty.lengths[0]) / len(seen) == pytest.approx(0.2, abs=0.03)


@pytest.mark.parametrize(("rate", "length"), [(0.0, 9), (1.0, 2)])
def test_dropout_never_and_always(make_plan, make_trainer, samples, rate, length):
    trainer = make_trainer(make_plan(train={"caption_dropout": rate}))
    assert set(shown_lengths(trainer, samples, 100)) == {length}


def test_the_draws_of_a_pass_depend_on_its_number_and_the_seed_alone():
    one, again, next_one, other = (draw(*place, (2, 3)) for place in ((0, 5), (0, 5), (0, 6), (1, 5)))
    assert torch.equal(one.noise, again.noise)
    assert (one.level, one.drop) == (again.level, again.drop)
    for different in (next_one, other):
        assert not torch.equal(one.noise, different.noise)
        assert one.level != different.level


# -- noise levels ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def uniform() -> torch.Tensor:
    return torch.stack([draw(0, number, ()).level for number in range(20_000)])


@pytest.mark.parametrize(
    ("timesteps", "options", "mean"),
    [
        ("uniform", {}, 0.5),
        ("weighted", {}, 0.5),
        ("sigmoid", {}, 0.5),
        ("logit-normal", {}, 0.5),
        ("logit-normal", {"mean": 3.0, "std": 1.0}, 0.931),  # kohya's logsnr(-6, 2)
        ("shift", {}, 0.639),  # the family's line at 1024 x 1024
        ("shift", {"shift": 2.2}, 0.659),
    ],
)
def test_levels_spread_as_their_names_say(uniform, timesteps, options, mean):
    settings = PlannedScheduler(name="flowmatch", timesteps=timesteps, **options)
    found = FlowMatch(settings, Qwen.variants["image"].flow_shift, {}).level(uniform, 4096)
    assert float(found.mean()) == pytest.approx(mean, abs=0.01)
    assert found.min() > 0
    assert found.max() < 1


def test_sigmoid_gathers_in_the_middle_and_uniform_does_not(uniform):
    for timesteps, share in (("uniform", 0.5), ("sigmoid", 0.728)):  # of draws in (0.25, 0.75)
        settings = PlannedScheduler(name="flowmatch", timesteps=timesteps)
        found = FlowMatch(settings, None, {}).level(uniform, 64)
        inside = ((found > 0.25) & (found < 0.75)).float().mean()
        assert float(inside) == pytest.approx(share, abs=0.015)


def test_weighted_counts_levels_by_a_bell_of_mean_one(uniform):
    scheduler = FlowMatch(PlannedScheduler(name="flowmatch", timesteps="weighted"), None, {})
    weight = scheduler.weight(uniform)
    assert float(weight.mean()) == pytest.approx(1.0, abs=0.01)
    points = scheduler.weight(torch.tensor([0.001, 0.25, 0.5, 0.876, 1.0]))
    assert points.tolist() == pytest.approx([v / 0.9832 for v in (0.447, 0.715, 0.925, 1.5227, 0.906)], abs=2e-4)


def test_weights_reach_the_loss(make_plan, make_trainer, samples):
    turn = Turn((1,), 2, 0)
    plain = make_trainer(make_plan(scheduler={"timesteps": "uniform"})).loss(turn, samples)
    weighted = make_trainer(make_plan(scheduler={"timesteps": "weighted"}))
    level = draw(weighted.plan.settings.seed, 2, ()).level
    expected = plain * weighted.scheduler.weight(level[None])
    assert weighted.loss(turn, samples).tolist() == pytest.approx(expected.tolist(), rel=1e-5)


# -- bad numbers -------------------------------------------------------------------------------------------------


def test_a_loss_that_is_no_number_stops_and_names_the_picture(make_plan, make_trainer, samples):
    trainer = make_trainer(make_plan())
    trainer.describe = "picture {}".format
    before = trainer.adapter.flat.detach().clone()

    def broken(index: int):
        item = samples(index)
        return replace(item, latents=item.latents * float("nan")) if index == 4 else item

    with pytest.raises(
        TrainingError, match=r"update 1 is not a finite number.*computed on picture 4 at noise level.*new run"
    ):
        trainer.update([Turn((2,), 0, 0), Turn((4,), 1, 0)], broken)
    assert torch.equal(trainer.adapter.flat, before)
    assert trainer.updates == 0
