"""Recovery adapters: made block by block, checked against what they are for, always active, never exported."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import safetensors.torch
import torch
from PIL import Image

from lorakit import Kit
from lorakit.control import Control
from lorakit.engine.fitting import BlockFit, Recipe
from lorakit.engine.loop import Trainer
from lorakit.engine.material import gather
from lorakit.engine.objective import make_scheduler
from lorakit.engine.parts import Batch
from lorakit.engine.recovery import recover
from lorakit.engine.regression import Moments, largest, solve
from lorakit.engine.streams import Shares
from lorakit.engine.together import Together
from lorakit.errors import ConfigError, ModelError
from lorakit.events import LayerRecovered, PhaseProgress, RecoveryFinished, RecoveryStopped, RunFinished, Warned
from lorakit.order import Turn, turns
from tests.engine.quantized import CPU, answers, context_of, drained, error, loaded, make_plan, write_scenes

QUICK = Recipe(rank=4, samples=5, sweeps=1, descents=2, updates=3, batch=2)
KEY = "transformer.transformer_blocks.0.attn.to_q.lora_{}.weight"


# -- the mathematics ---------------------------------------------------------------------------------------------


def test_the_correction_is_the_best_of_its_rank_on_the_inputs_seen():
    chance = torch.Generator().manual_seed(0)
    x = torch.randn(400, 24, generator=chance) * torch.logspace(0, -2, 24)
    off = torch.randn(16, 24, generator=chance)
    moments = Moments(24, CPU)
    moments.add(x)
    lora_a, lora_b = solve(off, moments, 3, 1e-9)
    left = (x @ (off - lora_b @ lora_a).T).norm()
    best = torch.linalg.svdvals(x @ off.T)[3:].norm()  # Eckart and Young: nothing of rank 3 leaves less
    assert left == pytest.approx(float(best), rel=1e-3)
    plain = torch.linalg.svd(off)
    unweighted = plain.U[:, :3] @ plain.S[:3].diag() @ plain.Vh[:3]
    assert left < 0.9 * (x @ (off - unweighted).T).norm()


def test_a_rank_over_the_layers_own_leaves_nothing_and_is_filled_up():
    moments = Moments(6, CPU)
    moments.add(torch.randn(50, 6))
    off = torch.randn(4, 6)
    lora_a, lora_b = solve(off, moments, 9, 1e-6)
    assert (lora_a.shape, lora_b.shape) == ((9, 6), (4, 9))
    assert error(lora_b @ lora_a, off) < 1e-3


def test_large_matrices_are_met_in_their_largest_directions():
    chance = torch.Generator().manual_seed(1)
    matrix = torch.randn(1100, 8, generator=chance) @ torch.randn(8, 1200, generator=chance)
    left, sizes, right = largest(matrix, 8)
    assert error(left * sizes @ right, matrix) < 1e-4


# -- making one --------------------------------------------------------------------------------------------------


def int2(output, pictures=None, **tables):
    tables["quantization"] = {"name": "int2", "uncorrected": True, **tables.get("quantization", {})}
    return make_plan(output, pictures, **tables)


def make(plan, file, recipe=QUICK, control=None):
    return recover(plan, Kit().shelves, control or Control(), file, recipe)


@pytest.fixture(scope="module")
def room(tmp_path_factory):
    return tmp_path_factory.mktemp("recovery")


@pytest.fixture(scope="module")
def pictures(room):
    return write_scenes(room / "pictures", 4, 1)


@pytest.fixture(scope="module")
def made(room, pictures):
    """A quickly made adapter, and the events of its making."""
    file = room / "quick.safetensors"
    return file, list(make(int2(room / "runs", pictures), file))


def test_every_layer_is_told_and_reported(made):
    file, events = made
    layers = [event for event in events if isinstance(event, LayerRecovered)]
    assert len({event.name for event in layers}) == len(layers) == 56
    finished = events[-1]
    assert isinstance(finished, RecoveryFinished)
    assert 0 < finished.after < finished.before
    table = json.loads(file.with_suffix(".json").read_text())
    assert table["layers"][layers[0].name] == {"before": layers[0].before, "after": layers[0].after}
    assert table["after"] == finished.after


def test_the_file_is_a_plain_lora_in_bf16(made):
    held = safetensors.torch.load_file(made[0])
    assert len(held) == 2 * (56 + 6)  # as the published ones: time, picture and text in, modulation and picture out
    assert {one.dtype for one in held.values()} == {torch.bfloat16}
    assert held[KEY.format("A")].shape == held[KEY.format("B")].T.shape == (4, 128)


def stopped_after(plan, file, done):
    """The events of a making that is stopped once `done` blocks and updates are done."""
    control, events = Control(), []
    for event in make(plan, file, control=control):
        events.append(event)
        if isinstance(event, PhaseProgress) and event.phase == "recover" and event.done == done:
            control.stop("enough")
    assert not file.exists()
    return events


def same(one, other):
    first, second = (safetensors.torch.load_file(file) for file in (one, other))
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_stopped_half_way_it_goes_on_after_the_last_block(room, pictures, made, monkeypatch):
    file, plan = room / "stopped.safetensors", int2(room / "runs", pictures)
    *_, last = stopped_after(plan, file, 2)
    assert isinstance(last, RecoveryStopped)
    assert (last.blocks, last.updates) == (2, 0)
    fits = []
    real = BlockFit.solve
    monkeypatch.setattr(BlockFit, "solve", lambda self, recipe: (fits.append(1), real(self, recipe)))
    again = list(make(plan, file))
    assert len(fits) == 2
    assert isinstance(again[-1], RecoveryFinished)
    assert same(made[0], file)
    assert not list(room.glob("*.partial"))


def test_stopped_among_the_last_updates_it_goes_on_after_the_last_one(room, pictures, made, monkeypatch):
    file, plan = room / "late.safetensors", int2(room / "runs", pictures)
    *_, last = stopped_after(plan, file, 4 + 2)
    assert (last.blocks, last.updates) == (4, 2)
    made_now = []
    real = Together.update
    monkeypatch.setattr(Together, "update", lambda self, among: (made_now.append(1), real(self, among)))
    list(make(plan, file))
    assert len(made_now) == 1
    assert same(made[0], file)


@pytest.mark.parametrize(("count", "fitted"), [(2, 32), (5, 32), (8, 3), (128, 32), (100, 100)])
def test_some_inputs_only_measure_and_the_rest_are_spread_over_the_noise_levels(count, fitted):
    shares = Shares.of(count, fitted)
    assert sorted((*shares.taught, *shares.measured)) == list(range(count))
    assert set(shares.fitted) <= set(shares.taught)
    assert len(set(shares.fitted)) == len(shares.fitted) == min(fitted, len(shares.taught))
    assert len(shares.measured) == max(1, count // 8)
    assert max(shares.fitted) - min(shares.fitted) >= 0.6 * (count - 2)


def test_inputs_of_other_shapes_are_fitted_too_and_how_many_go_at_once_changes_nothing(room, tmp_path):
    folder = write_scenes(tmp_path / "pictures", 5, 3)
    Image.new("RGB", (96, 24), "red").save(folder / "wide.png")
    (folder / "wide.txt").write_text("a red square")
    files = []
    for at_once in (1, 4):
        files.append(tmp_path / f"{at_once}.safetensors")
        list(make(int2(tmp_path / "runs", folder, train={"batch_size": at_once}), files[-1], replace(QUICK, samples=6)))
    first, second = (safetensors.torch.load_file(file) for file in files)
    assert all(error(first[name], second[name]) < 0.02 for name in first)  # bf16 apart


def test_closing_the_stream_ends_every_pass(room, pictures):
    import threading

    before = threading.active_count()
    events = make(int2(room / "runs", pictures), room / "closed.safetensors")
    for event in events:
        if isinstance(event, LayerRecovered):
            break
    assert threading.active_count() > before
    events.close()
    assert threading.active_count() == before


def test_full_precision_and_a_second_correction_are_refused(room, made):
    kit = Kit()
    with pytest.raises(ConfigError, match="full precision"):
        kit.recover(make_plan(room / "runs"), room / "no.safetensors")
    with pytest.raises(ConfigError, match="names one already"):
        kit.recover(int2(room / "runs", quantization={"recovery": str(made[0])}), room / "no.safetensors")


# -- using one ---------------------------------------------------------------------------------------------------


def test_it_needs_no_other_word_is_always_active_and_never_exported(room, pictures, made):
    plan = make_plan(
        room / "used",
        pictures,
        quantization={"name": "int2", "recovery": str(made[0])},
        name="used",
        train={"updates": 2},
        save={"dtype": "fp32"},
    )
    denoiser, adapter = loaded(plan)
    trained = {id(half) for layer in adapter.layers.values() for half in (layer.lora_A, layer.lora_B)}
    assert {id(one) for one in denoiser.module.parameters() if one.requires_grad} == trained
    full, plain = loaded(make_plan(room / "runs", pictures))[0], loaded(int2(room / "runs", pictures))[0]
    with adapter.at(0.0):
        assert error(answers(denoiser), answers(full)) < error(answers(plain), answers(full))
    *_, last = Kit().train(plan)
    assert isinstance(last, RunFinished)
    assert "scale 1.000" in last.proof
    names = set(safetensors.torch.load_file(last.lora))
    assert names == {f"{name}.lora_{half}.weight" for name in adapter.layers for half in "AB"}


@pytest.mark.parametrize("prefix", ["diffusion_model.", ""])
def test_a_published_file_is_taken_under_any_prefix_outer_layers_too(room, pictures, made, prefix):
    held = {name.replace("transformer.", prefix, 1): one for name, one in safetensors.torch.load_file(made[0]).items()}
    held |= {f"{prefix}img_in.lora_A.weight": torch.ones(4, 64), f"{prefix}img_in.lora_B.weight": torch.ones(128, 4)}
    file = room / f"published-{len(prefix)}.safetensors"
    safetensors.torch.save_file(held, file)
    events = []
    plan = make_plan(room / "runs", pictures, quantization={"name": "int2", "recovery": str(file)})
    denoiser = loaded(plan, events)[0]
    assert type(denoiser.module.img_in).__name__ == "Corrected"
    assert any(isinstance(event, Warned) and "which base" in event.message for event in events)


def broken(change):
    def write(source, target):
        from safetensors import safe_open

        with safe_open(source, framework="pt") as file:
            about = file.metadata()
        held = safetensors.torch.load_file(source)
        change(held, about)
        safetensors.torch.save_file(held, target, about)

    return write


A, B = KEY.format("A"), KEY.format("B")


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (broken(lambda held, about: about.update({"lorakit.recovery.base": "other"})), "corrects another base"),
        (broken(lambda held, about: about.update({"lorakit.recovery.quantization": "int4 1"})), "quantization int4"),
        (broken(lambda held, about: about.update({"lorakit.recovery.rank": "9"})), "its rank is 9"),
        (broken(lambda held, about: held.update({A: held[A][:2].clone()})), "has rank 2 and 4, and others 4|others 2"),
        (broken(lambda held, about: held.update({A: held[A][:, :9].clone()})), "9 inputs"),
        (broken(lambda held, about: held.pop(B)), "lora_A in an unknown form"),
        (
            broken(lambda held, about: held.update({"x.lora_A.weight": held[A] + 0, "x.lora_B.weight": held[B] + 0})),
            "layer x",
        ),
        (broken(lambda held, about: held.update({"x.weight": held[A] + 0})), "x.weight is not one of a LoRA"),
        (lambda source, target: target.write_bytes(b"nothing"), "cannot be read"),
    ],
    ids=["base", "quantization", "said rank", "rank", "shape", "half", "layer", "key", "torn"],
)
def test_an_adapter_that_does_not_fit_is_refused(room, pictures, made, tmp_path, damage, says):
    file = tmp_path / "broken.safetensors"
    damage(made[0], file)
    plan = make_plan(room / "runs", pictures, quantization={"name": "int2", "recovery": str(file)})
    with pytest.raises(ModelError, match=says):
        loaded(plan)


def test_a_missing_file_and_one_without_quantization_are_refused_while_planning(room, pictures, made):
    with pytest.raises(ModelError, match=r"no recovery adapter .*gone.*lorakit recover"):
        make_plan(room, pictures, quantization={"name": "int2", "recovery": str(room / "gone.safetensors")})
    with pytest.raises(ConfigError, match="corrects a quantized base"):
        make_plan(room, pictures, quantization={"name": "none", "recovery": str(made[0])})


# -- the goals ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def world(room):
    """Pictures that the adapter was made on, and others."""
    return write_scenes(room / "shown", Recipe().samples, 77), write_scenes(room / "unseen", 16, 5)


@pytest.fixture(scope="module")
def good(room, world):
    file = room / "good.safetensors"
    *_, last = make(int2(room / "runs", world[0], train={"batch_size": Recipe().batch}), file, Recipe())
    assert isinstance(last, RecoveryFinished)
    return file


def seen(plan):
    """The plan's pictures as noisy inputs, over all noise levels."""
    material = drained(gather(context_of(plan)))
    count = len(material.dataset.samples)
    chance = torch.Generator().manual_seed(3)
    for number in range(count):
        item = material.item(number)
        clean, t = item.latents[None].float(), torch.tensor([(number + 0.5) / count])
        yield torch.lerp(clean, torch.randn(clean.shape, generator=chance), t), t, Batch(item.text)


@pytest.mark.thorough
def test_recovery_takes_back_at_least_half_of_the_error_of_int2(room, world, good):
    plan = make_plan(room / "runs", world[1])
    shown = list(seen(plan))
    wanted = answers(loaded(plan)[0], shown)
    off = error(answers(loaded(int2(room / "runs", world[1]))[0], shown), wanted)
    corrected = int2(room / "runs", world[1], quantization={"recovery": str(good)})
    left = error(answers(loaded(corrected)[0], shown), wanted)
    print(f"int2 {off:.4f}, recovered {left:.4f}, ratio {left / off:.3f}")
    assert left < 0.5 * off


def trained_loss(room, pictures, unseen, seed, updates=120, **quantization):
    """The loss on unseen pictures of the concept, with the same noise for all, after training on others."""
    train = {"updates": updates, "batch_size": 4}
    plan = make_plan(room / "runs", pictures, seed=seed, quantization=quantization, train=train)
    context, kit = context_of(plan), Kit()
    denoiser, adapter = loaded(plan)
    scheduler = make_scheduler(context)
    optimizer = kit.shelves.optimizers["adamw"].resolve()(
        [part.group for part in adapter.parts], plan.settings.optimizer
    )
    trainer = Trainer(plan, denoiser, adapter, scheduler, optimizer, context.family.patch, torch.float32)

    taught = drained(gather(context))
    for batches in turns(taught.dataset, plan.settings.train, plan.settings.seed, 0):
        trainer.update(batches, taught.item)
    held_out = drained(gather(context_of(make_plan(room / "runs", unseen))))
    with torch.no_grad():
        losses = [
            trainer.loss(Turn((number,), 10_000 + 50 * number + again, 0), held_out.item)
            for number in range(len(held_out.dataset.samples))
            for again in range(12)
        ]
    return float(torch.stack(losses).mean())


@pytest.mark.thorough
def test_a_lora_trained_on_the_recovered_base_is_within_a_twentieth_of_one_trained_on_int8(room, good):
    from lorakit.testing.examples import concept_examples

    folders = []
    for name, seed in (("taught", 7), ("held-out", 8)):
        folder = room / name
        folder.mkdir()
        for number, example in enumerate(concept_examples(12, 64, seed)):
            example.image.save(folder / f"{number}.png")
            (folder / f"{number}.txt").write_text(example.caption)
        folders.append(folder)
    ratios = []
    for seed in (0, 1):
        eight = trained_loss(room, *folders, seed, name="int8")
        two = trained_loss(room, *folders, seed, name="int2", recovery=str(good))
        ratios.append(two / eight)
    bare = trained_loss(room, *folders, seed, name="int2", uncorrected=True)
    print(f"held-out loss over int8's: recovered {ratios}, bare {bare / eight:.3f}")
    assert sum(ratios) / len(ratios) < 1.05
    assert max(ratios) < 1.06
    assert two - eight < 0.25 * (bare - eight)
