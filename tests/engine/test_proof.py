"""The proof tells a file that works elsewhere from one that does not."""

from __future__ import annotations

import pytest
import safetensors.torch
import torch

from lorakit.dataset import Dataset
from lorakit.engine import layouts, lora_file, proof
from lorakit.engine.cache import write_atomically
from lorakit.engine.parts import Source
from lorakit.errors import TrainingError


@pytest.fixture
def made(make_plan, make_trainer, family, toy, tmp_path):
    """(the file, a function that proves it) of an adapter that was trained a little."""
    plan = make_plan(lora={"alpha": 2.0})
    trainer = make_trainer(plan, noise=0.1)
    path = tmp_path / "x.safetensors"
    write_atomically(path, lora_file.encode(plan, family, trainer.adapter, Dataset(), 1))
    source = Source(toy, "the toy", torch.float32)

    def prove():
        return proof.prove(path, plan, family, source, trainer.adapter)

    return path, prove, trainer.adapter


def change(path, edit, metadata=None) -> None:
    tensors = safetensors.torch.load_file(path)
    safetensors.torch.save_file(edit(tensors) or tensors, path, metadata)


def test_a_good_file_loads_everywhere_at_scale_one(made):
    _, prove, adapter = made
    found = prove()
    count = len(adapter.layers)
    assert (found.loaded, found.accepted, found.modules) == (count, count, count)
    assert found.scale == pytest.approx(1, abs=1e-6)
    assert found.holds
    assert str(found) == f"diffusers {count}/{count} modules, scale 1.000 | ComfyUI keys {count}/{count}"


@pytest.mark.parametrize(
    ("dtype", "base"),
    [("bf16", torch.float32), ("fp16", torch.float32), ("fp16", torch.bfloat16), ("fp32", torch.bfloat16)],
)
def test_rounding_to_half_precision_is_no_fault(make_plan, make_trainer, family, toy, tmp_path, dtype, base):
    plan = make_plan(save={"dtype": dtype})
    trainer = make_trainer(plan, noise=0.1)
    path = tmp_path / "x.safetensors"
    write_atomically(path, lora_file.encode(plan, family, trainer.adapter, Dataset(), 1))
    source = Source(toy, "the toy", base)
    assert proof.prove(path, plan, family, source, trainer.adapter).holds


def test_a_large_base_is_proved_by_names_and_shapes(made, monkeypatch):
    _, prove, adapter = made
    monkeypatch.setattr(proof, "TWICE", 0)
    found = prove()
    assert found.holds
    assert found.loaded == len(adapter.layers)
    assert "too large to load twice" in str(found)


@pytest.mark.parametrize("large", [False, True])
def test_a_scale_in_the_metadata_is_caught(made, monkeypatch, large):
    """diffusers takes the scale from `lora_adapter_metadata`, ComfyUI does not: one of them is wrong."""
    path, prove, _ = made
    if large:
        monkeypatch.setattr(proof, "TWICE", 0)
    about = '{"transformer.r": 4, "transformer.lora_alpha": 2, "transformer.target_modules": ["to_q", "to_out.0"]}'
    change(path, lambda tensors: None, {"lora_adapter_metadata": about, "format": "pt"})
    with pytest.raises(TrainingError, match=r"does not give back what was trained.*differs by 50"):
        prove()


def test_one_damaged_number_is_caught(made):
    path, prove, _ = made

    def edit(tensors):
        next(tensor for name, tensor in tensors.items() if "lora_B" in name).view(-1)[0] += 0.5

    change(path, edit)
    with pytest.raises(TrainingError, match=r"effect on transformer.transformer_blocks.* differs by"):
        prove()


def test_a_lost_layer_is_caught(made):
    path, prove, adapter = made
    lost = next(iter(adapter.layers))
    change(path, lambda tensors: {name: one for name, one in tensors.items() if lost not in name})
    with pytest.raises(TrainingError, match=f"{lost} is not loaded"):
        prove()


def test_a_file_cut_short_is_caught(made):
    path, prove, _ = made
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(TrainingError, match=r"x\.safetensors cannot be read back"):
        prove()


# -- ComfyUI's rules ---------------------------------------------------------------------------------------------

SHAPES = {"transformer.blocks.0.to_q": (8, 16)}


def pair(name="transformer.blocks.0.to_q", a=(4, 8), b=(16, 4), halves="AB") -> dict[str, torch.Tensor]:
    shapes = {"A": a, "B": b}
    return {f"{name}.lora_{half}.weight": torch.zeros(shapes[half]) for half in halves}


def test_comfyui_takes_both_halves_of_a_known_layer(family):
    assert layouts.accepted(pair(), family, SHAPES) == 1


@pytest.mark.parametrize(
    "bad",
    [
        pair("blocks.0.to_q"),
        pair("base_model.model.blocks.0.to_q"),
        pair("transformer.blocks.9.to_q"),
        pair(halves="A"),
        pair(halves="B"),
        pair(a=(4, 9)),
        pair(b=(15, 4)),
        pair(b=(16, 3)),
        {key.replace("lora_A.weight", "lora_A"): one for key, one in pair().items()},
    ],
    ids=["bare", "peft-prefix", "unknown-layer", "no-B", "no-A", "inputs", "outputs", "ranks", "no-weight"],
)
def test_comfyui_passes_over_what_does_not_fit(family, bad):
    assert layouts.accepted(bad, family, SHAPES) == 0
