"""Validation measures the training's own loss and changes nothing of it."""

import json
import math

import pytest
import torch
from PIL import Image

from lorakit.engine.draws import draw, seed_of
from lorakit.engine.validation import Materials, Tried, Validator, still, weight_norm
from lorakit.events import Event, PhaseFinished, Validated
from lorakit.order import Turn
from lorakit.validation import LEVELS


@pytest.fixture
def many(tmp_path):
    folder = tmp_path / "many"
    folder.mkdir()
    for number in range(12):
        Image.new("RGB", (32, 32), (20 * number, 200 - 15 * number, 120)).save(folder / f"{number:02}.png")
        (folder / f"{number:02}.txt").write_text(f"sks thing {number}", encoding="utf-8")
    return folder


def run(kit, plan):
    torch.manual_seed(len(plan.settings.name))  # whatever state the generators are in
    return list(kit.train(plan))


def test_a_run_that_is_measured_trains_the_same_adapter(kit, make_plan, many, tmp_path, of_kind):
    """Only the pictures held out could make a difference; here the same are left out by hand."""
    common = {"train": {"updates": 3, "batch_size": 2, "caption_dropout": 0.3}, "lora": {"dropout": 0.2}}
    measured = make_plan(name="measured", data=[{"folder": str(many)}], validation={"every": 1}, **common)
    for held in measured.held_out:
        assert held.startswith(str(many))
    events = run(kit, measured)
    found = of_kind(events, Validated)
    assert [one.update for one in found] == [0, 1, 2, 3]
    for held in measured.held_out:
        (many / held.rpartition("/")[2]).unlink()
    plain = make_plan(name="plain", data=[{"folder": str(many)}], validation={"every": 0}, **common)
    assert not of_kind(run(kit, plain), Validated)
    files = [tmp_path / "runs" / name / f"{name}.safetensors" for name in ("measured", "plain")]
    from safetensors.torch import load_file

    one, other = map(load_file, files)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    first, last = found[0], found[-1]
    assert first.drift == 0
    assert first.norm == 0
    assert last.drift > 0
    assert last.norm > 0
    assert last.loss_error > 0
    assert math.isclose(last.gap, last.loss - last.train_loss, abs_tol=1e-6)
    assert last.trigger is not None
    assert Event.from_json(last.to_json()) == last
    (train,) = [one for one in of_kind(events, PhaseFinished) if one.phase == "train"]
    assert "% of the time for validation" in train.note


def validator(trainer, samples, **given):
    tried = [Tried(samples(number)) for number in range(3)]
    materials = Materials(given.get("held_out", tried[:2]), given.get("compared", tried[2:]), [samples(0)])
    return Validator(trainer, materials, lambda: None)


def test_the_loss_is_the_training_loss_at_the_fixed_noise(make_plan, make_trainer, samples, monkeypatch):
    plan = make_plan(train={"updates": 1})
    trainer = make_trainer(plan, noise=0.02)
    event = validator(trainer, samples).measure()
    for place, level in enumerate(LEVELS):
        losses = []
        for number in range(2):
            chance = torch.Generator().manual_seed(seed_of("validation held out", 0, number * len(LEVELS) + place))
            noise = torch.randn((16, 8, 8), generator=chance)
            drawn = draw(0, 0, (16, 8, 8))
            fixed = type(drawn)(noise, torch.tensor(level), 1.0, drawn.offset)
            monkeypatch.setattr("lorakit.engine.preparing.draw", lambda *_, fixed=fixed: fixed)
            losses.append(float(trainer.loss(Turn((number,), 0, 0), samples).detach()))
        assert event.loss_by_level[place] == pytest.approx(sum(losses) / 2, rel=1e-6)
    assert event.loss == pytest.approx(sum(event.loss_by_level) / len(LEVELS), rel=1e-6)


def test_it_measures_the_same_again_and_leaves_modes_and_generators_alone(make_plan, make_trainer, samples):
    trainer = make_trainer(make_plan(train={"updates": 1}, lora={"dropout": 0.5}), noise=0.02)
    trainer.adapter.train()
    next(iter(trainer.denoiser.module.children())).eval()
    modes = [module.training for module in trainer.denoiser.module.modules()]
    state, weights = torch.get_rng_state(), trainer.adapter.flat.detach().clone()
    measure = validator(trainer, samples)
    first, second = measure.measure(), measure.measure()
    assert (first.loss, first.train_loss, first.drift, first.norm) == (
        second.loss,
        second.train_loss,
        second.drift,
        second.norm,
    )
    assert modes == [module.training for module in trainer.denoiser.module.modules()]
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(trainer.adapter.flat.detach(), weights)


def test_modes_come_back_when_something_goes_wrong(make_plan, make_trainer):
    trainer = make_trainer(make_plan(train={"updates": 1}))
    trainer.adapter.train()
    seen = {}
    with pytest.raises(KeyError), still(trainer.adapter):
        seen.pop(trainer.denoiser.module.training)
    assert trainer.denoiser.module.training


def test_without_pictures_held_out_the_rest_is_measured(make_plan, make_trainer, samples):
    trainer = make_trainer(make_plan(train={"updates": 1}), noise=0.02)
    text = samples(5).text
    event = validator(trainer, samples, held_out=[], compared=[Tried(samples(1), text), Tried(samples(2))]).measure()
    assert (event.loss, event.gap, event.loss_by_level) == (None, None, ())
    assert event.train_loss is not None
    assert event.trigger is not None
    assert event.drift > 0
    json.loads(event.to_json())


def test_norms_are_those_of_the_product_over_the_weight(make_plan, make_trainer, samples):
    trainer = make_trainer(make_plan(train={"updates": 1}, lora={"alpha": 2}), noise=0.02)
    event = validator(trainer, samples).measure()
    found = {
        name: float(((layer.lora_B @ layer.lora_A).detach() * trainer.adapter.scale).norm() / layer.base.weight.norm())
        for name, layer in trainer.adapter.layers.items()
    }
    assert event.largest_norm == pytest.approx(max(found.values()), rel=1e-4)
    assert event.largest_layer == max(found, key=found.__getitem__)
    assert event.norm == pytest.approx(float(torch.tensor(list(found.values())).median()), rel=1e-4)


def test_a_weight_is_found_under_what_wraps_it(kit):
    from lorakit.engine.correction import Corrected

    linear = torch.nn.Linear(64, 32)
    held = kit.shelves.quantizers["int8"].resolve()().convert(linear, torch.device("cpu"))
    wrapped = Corrected(held, torch.zeros(2, 64), torch.zeros(32, 2))
    assert weight_norm(wrapped) == pytest.approx(float(linear.weight.detach().norm()), rel=0.01)
    assert weight_norm(torch.nn.Identity()) is None


def test_a_run_that_was_stopped_is_measured_as_if_it_was_not(kit, make_plan, many, of_kind):
    from lorakit.control import Control
    from lorakit.events import UpdateFinished

    plan = make_plan(data=[{"folder": str(many)}], validation={"every": 2}, train={"updates": 4}, save={"every": 2})
    control, seen = Control(), []
    for event in kit.train(plan, control):
        seen.append(event)
        if isinstance(event, UpdateFinished) and event.update == 2:
            control.stop("here")
    seen += kit.resume(plan.folder)
    assert [one.update for one in of_kind(seen, Validated)] == [0, 2, 4]
