"""Training with reference pictures on the toys: seen, cached, kept when captions are dropped, resumed and proved."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch
from PIL import Image

from lorakit.control import Control
from lorakit.engine.caching import Words
from lorakit.engine.material import gather
from lorakit.events import PreviewDrawn, RunFinished, UpdateFinished
from lorakit.order import Turn
from lorakit_qwen.model import QwenDenoiser

COUNTS = {"0": 0, "1": 1, "2": 2, "3": 2}
SHAPES = [(40, 40), (90, 30)]  # of first and second references


@pytest.fixture
def pairs(tmp_path):
    """Four pictures; none, one, two and two references."""
    chance = np.random.default_rng(3)
    for name, count in COUNTS.items():
        save(tmp_path / "targets" / f"{name}.png", chance, (32, 32))
        (tmp_path / "targets" / f"{name}.txt").write_text(f"picture {name}", encoding="utf-8")
        for number, size in enumerate(SHAPES[:count], 1):
            save(tmp_path / "references" / f"{name}_{number}.png", chance, size)
    return {"folder": str(tmp_path / "targets"), "references": str(tmp_path / "references")}


def save(path, chance, size) -> None:
    path.parent.mkdir(exist_ok=True)
    coarse = chance.integers(0, 255, (2, 2, 3)).astype(np.uint8)
    Image.fromarray(coarse).resize(size, Image.Resampling.BILINEAR).save(path)


@pytest.fixture
def plan_for(make_plan, pairs):
    """A plan over the pairs; for `edit`, over the pictures that have one reference."""

    def make(variant="edit-2509", **tables):
        data = [pairs]
        if variant == "edit":
            lines = [{"target": f"targets/{n}.png", "references": [f"references/{n}_1.png"]} for n in "123"]
            data = [{"list": write(pairs["folder"], lines)}]
        table = {"variant": variant, "data": data, "model": {"source": "toy"}, "sampling": {"prompts": []}, **tables}
        table["train"] = {"reference_resolution": 32, "updates": 4, **tables.get("train", {})}
        return make_plan(**table, text_encoder={"reference_resolution": 32})

    return make


def write(folder, lines) -> str:
    file = Path(folder).parent / "pairs.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    return str(file)


@pytest.fixture
def batches(monkeypatch):
    """What the denoiser is given, call by call."""
    seen, inner = [], QwenDenoiser.predict

    def predict(self, noisy, t, batch):
        seen.append(batch)
        return inner(self, noisy, t, batch)

    monkeypatch.setattr(QwenDenoiser, "predict", predict)
    return seen


def weights(plan) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(plan.folder / f"{plan.settings.name}.safetensors")


def same(one, other) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


# -- learning ----------------------------------------------------------------------------------------------------


def test_the_loss_falls_and_the_references_are_why(plan_for, context_for, drained, make_trainer):
    """Two pictures under one caption: only their references tell them apart."""
    plan = plan_for(
        optimizer={"learning_rate": 1e-2}, lora={"rank": 16, "targets": ["attn.to_q", "attn.to_k", "attn.to_v"]}
    )
    material = drained(gather(context_for(plan)))
    one, other = material.item(2), replace(material.item(3), text=material.item(2).text)
    pair, swapped = [one, other], [replace(one, references=other.references), replace(other, references=one.references)]
    trainer = make_trainer(plan)

    def loss(items) -> float:
        with torch.no_grad():
            turns = [Turn((0, 1), 1000 + 2 * number, 0) for number in range(16)]
            return float(torch.cat([trainer.loss(turn, items.__getitem__) for turn in turns]).mean())

    before = loss(pair)
    for number in range(60):
        trainer.update([Turn((0, 1), 2 * number, 0)], pair.__getitem__)
    assert loss(pair) < 0.8 * before
    assert loss(swapped) > 1.05 * loss(pair)


def test_none_one_and_two_references_train_in_one_run(kit, plan_for, batches, of_kind):
    plan = plan_for(train={"updates": 8, "batch_size": 2})
    events = list(kit.train(plan))
    assert len(of_kind(events, UpdateFinished)) == 8
    shapes = {(len(batch.text.lengths), tuple(tuple(one.shape[2:]) for one in batch.references)) for batch in batches}
    square, wide = (8, 8), (8, 16)
    assert shapes == {(1, ()), (1, (square,)), (2, (square, wide))}
    assert all(len(one) == len(batch.text.lengths) for batch in batches for one in batch.references)


def test_dropped_captions_keep_their_references(plan_for, context_for, drained, make_trainer, batches):
    plan = plan_for(train={"caption_dropout": 1.0})
    material = drained(gather(context_for(plan)))
    make_trainer(plan).loss(Turn((2,), 0, 0), material.item)
    (batch,) = batches
    item, nothing = material.item(2), material.item(0)
    assert batch.text.lengths == item.empty.lengths
    assert item.empty.lengths != item.text.lengths
    assert item.empty.lengths > nothing.empty.lengths  # the pictures' tokens are there still
    for found, own in zip(batch.references, item.references, strict=True):
        assert torch.equal(found[0], own)


# -- caching -----------------------------------------------------------------------------------------------------


def test_references_are_encoded_once_and_never_while_training(kit, plan_for, family, monkeypatch):
    list(kit.train(plan_for(name="first", train={"caption_dropout": 0.5})))
    for part in ("text_encoder", "image_coder"):
        monkeypatch.setattr(family, part, lambda *_: pytest.fail("loaded again"))
    list(kit.train(plan_for(name="second", train={"caption_dropout": 0.5})))


def test_previews_take_references_from_the_cache_too(kit, plan_for, family, monkeypatch, of_kind):
    sampling = {"every": 2, "guidance": 2}
    list(kit.train(plan_for(name="first", sampling=sampling)))
    make = family.image_coder

    def deaf(*arguments):
        coder = make(*arguments)
        coder.encode = lambda pixels: pytest.fail("encoded again")
        return coder

    monkeypatch.setattr(family, "image_coder", deaf)
    events = list(kit.train(plan_for(name="second", sampling=sampling)))
    assert len(of_kind(events, PreviewDrawn)) == 4


def test_a_reference_seen_by_several_pictures_is_encoded_once(
    plan_for, context_for, drained, family, pairs, monkeypatch
):
    lines = [{"target": f"targets/{n}.png", "references": ["references/1_1.png"]} for n in "012"]
    plan = plan_for(data=[{"list": write(pairs["folder"], lines)}])
    encoded, make = [], family.image_coder

    def counted(*arguments):
        coder = make(*arguments)
        inner = coder.encode
        coder.encode = lambda pixels: encoded.append(1) or inner(pixels)
        return coder

    monkeypatch.setattr(family, "image_coder", counted)
    material = drained(gather(context_for(plan)))
    assert len(encoded) == 4
    assert torch.equal(material.item(0).references[0], material.item(2).references[0])


def test_text_is_named_by_the_references_that_it_sees(plan_for, context_for, drained):
    material = drained(gather(context_for(plan_for())))
    (zero, one, two, three), store = material.dataset.samples, material.texts
    seen = [(), one.references, two.references, two.references[::-1], three.references, two.references[:1]]
    smaller = replace(two.references[0], text_shape=type(two.references[0].shape)(64, 32))
    keys = {store.key(Words("a", some)) for some in [*seen, (smaller,)]}
    assert len(keys) == 7
    copy = zero.path.parent / "copy.png"
    copy.write_bytes(one.references[0].path.read_bytes())
    assert store.key(Words("a", (replace(one.references[0], path=copy),))) == store.key(Words("a", one.references))


# -- runs --------------------------------------------------------------------------------------------------------


def test_a_stopped_run_with_references_goes_on_to_the_same_file(kit, plan_for):
    options = {"train": {"updates": 6, "caption_dropout": 0.3, "accumulation": 2}}
    straight, stopped = plan_for(name="straight", **options), plan_for(name="stopped", **options)
    list(kit.train(straight))
    control = Control()
    for event in kit.train(stopped, control):
        if isinstance(event, UpdateFinished) and event.update == 2:
            control.stop()
    assert isinstance(list(kit.resume(stopped.folder))[-1], RunFinished)
    assert same(weights(stopped), weights(straight))


@pytest.mark.parametrize(
    ("variant", "architecture"),
    [
        ("edit", "Qwen-Image-Edit/lora"),
        ("edit-2509", "Qwen-Image-Edit-Plus/lora"),
        ("edit-2511", "Qwen-Image-Edit-2511/lora"),
    ],
)
def test_the_file_of_every_variant_is_proved(kit, plan_for, batches, variant, architecture):
    plan = plan_for(variant, train={"updates": 3})
    last = list(kit.train(plan))[-1]
    count = len(weights(plan)) // 2
    assert last.proof == f"diffusers {count}/{count} modules, scale 1.000 | ComfyUI keys {count}/{count}"
    assert any(batch.references for batch in batches)
    with safetensors.safe_open(plan.folder / "run.safetensors", "pt") as file:
        about = file.metadata()
    assert (about["modelspec.architecture"], about["lorakit.template"]) == (architecture, "edit")
    assert str(plan.folder.parents[1]) not in about["lorakit.config"]


@pytest.mark.parametrize("variant", ["edit-2509", "edit-2511"])
def test_bf16_int8_and_gradient_checkpointing_with_references(kit, plan_for, of_kind, variant):
    plan = plan_for(
        variant,
        train={"updates": 3, "precision": "bf16", "gradient_checkpointing": True, "batch_size": 2},
        quantization={"name": "int8"},
        sampling={"every": 3, "guidance": 2},
    )
    events = list(kit.train(plan))
    assert len(of_kind(events, PreviewDrawn)) == 2
    assert isinstance(events[-1], RunFinished)
    assert any(tensor.any() for name, tensor in weights(plan).items() if "lora_B" in name)


def test_previews_look_at_their_references(kit, plan_for, pairs):
    references = [[], ["1_1.png"], ["3_2.png"]]
    named = [[f"{pairs['references']}/{name}" for name in some] for some in references]
    drawn = {"prompts": ["a", "a ", "a  "], "references": named, "every": 1, "seed": 1}
    plan = plan_for(train={"updates": 1}, sampling=drawn)
    list(kit.train(plan))
    found = [np.asarray(Image.open(plan.folder / "samples" / f"000001-{n}.png"), int) for n in range(3)]
    assert {one.shape for one in found} == {(32, 32, 3)}
    plan = plan_for(name="blind", train={"updates": 1}, sampling={**drawn, "references": [[], [], []]})
    list(kit.train(plan))
    blind = [np.asarray(Image.open(plan.folder / "samples" / f"000001-{n}.png"), int) for n in range(3)]
    apart = [int(np.abs(one - other).max()) for one, other in zip(found, blind, strict=True)]
    assert apart[0] == 0  # the same noise and words, and the seen pictures are all that differs elsewhere
    assert min(apart[1:]) > 5
