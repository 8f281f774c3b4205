"""Weights read block by block give the very model that from_pretrained gives, or say what is wrong with them."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
from diffusers import QwenImageTransformer2DModel

from lorakit.engine.parts import Source
from lorakit.engine.weights import Weights
from lorakit.errors import ModelError
from lorakit.events import PhaseFinished
from tests.engine.quantized import loaded, make_plan, write_scenes

FILE = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def model(tmp_path):
    from lorakit_qwen.family import TOY

    return shutil.copytree(TOY, tmp_path / "model")


@pytest.fixture
def plan(tmp_path, model):
    pictures = write_scenes(tmp_path / "pictures", 2, 1)

    def make(**tables):
        tables["model"] = {"source": str(model)}
        return make_plan(tmp_path / "runs", pictures, **tables)

    return make


def split(folder):
    """The weights in two files with an index, as large models come."""
    held = safetensors.torch.load_file(folder / FILE)
    names, places = sorted(held), {}
    for number, some in enumerate((names[::2], names[1::2])):
        safetensors.torch.save_file({one: held[one] for one in some}, folder / f"part-{number}.safetensors")
        places |= dict.fromkeys(some, f"part-{number}.safetensors")
    (folder / FILE).unlink()
    (folder / f"{FILE}.index.json").write_text(json.dumps({"weight_map": places}))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("in_parts", [False, True])
def test_equal_bit_for_bit_to_from_pretrained(plan, model, precision, in_parts):
    made = plan(train={"precision": precision})
    wanted = Source(model, "it", {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]).load(
        QwenImageTransformer2DModel, "transformer"
    )
    if in_parts:
        split(model / "transformer")
    module = loaded(made)[0].module
    found = {name.replace(".base.", "."): one for name, one in module.state_dict().items() if ".lora_" not in name}
    state = wanted.state_dict()
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], state[name]) and found[name].dtype == state[name].dtype for name in state)
    assert torch.equal(module.pos_embed.pos_freqs, wanted.pos_embed.pos_freqs)
    assert not module.training
    assert not any(one.is_meta for one in module.parameters())


def test_the_fingerprint_is_the_same_in_one_file_or_two_and_tells_bases_apart(model):
    folder = model / "transformer"
    whole = Weights(folder, "it").fingerprint()
    split(folder)
    assert Weights(folder, "it").fingerprint() == whole
    name = "transformer_blocks.0.attn.to_q.weight"
    part = folder / Weights(folder, "it")._places[name].file.name
    held = safetensors.torch.load_file(part)
    held[name] += 0.01
    safetensors.torch.save_file(held, part)
    assert Weights(folder, "it").fingerprint() != whole


def changed(model, change):
    held = safetensors.torch.load_file(model / "transformer" / FILE)
    change(held)
    safetensors.torch.save_file(held, model / "transformer" / FILE)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda held: held.pop("proj_out.bias"), r"it lacks proj_out\.bias"),
        (lambda held: held.update(extra=torch.zeros(2)), "it has the unknown extra"),
        (lambda held: held.update({"proj_out.bias": torch.zeros(2)}), r"of other shapes are proj_out\.bias"),
    ],
    ids=["missing", "unknown", "shape"],
)
def test_weights_that_do_not_fit_are_named(plan, model, change, says):
    made = plan()
    changed(model, change)
    with pytest.raises(ModelError, match=says):
        loaded(made)


def test_pickled_weights_are_refused_with_advice(plan, model):
    made = plan()
    (model / "transformer" / FILE).rename(model / "transformer" / "diffusion_pytorch_model.bin")
    with pytest.raises(ModelError, match=r"only diffusion_pytorch_model\.bin.*safe_serialization"):
        loaded(made)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_nothing_of_a_file_is_mapped_into_memory(model):
    weights = Weights(model / "transformer", "it")
    held = dict(weights.read(weights.shapes))
    assert str(model) not in Path("/proc/self/maps").read_text()
    assert len(held) == len(weights.shapes)


def test_a_file_that_is_cut_short_after_it_was_looked_at_is_named(model):
    file = model / "transformer" / FILE
    weights = Weights(model / "transformer", "it")
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(ModelError, match=r"it cannot be loaded.*ends within a tensor"):
        list(weights.read(weights.shapes))


def spoil(header):
    """The file's header as bytes of another."""

    def write(file):
        content = file.read_bytes()
        size = int.from_bytes(content[:8], "little")
        table = header(json.loads(content[8 : 8 + size]))
        told = json.dumps(table).encode() if isinstance(table, dict) else table
        file.write_bytes(len(told).to_bytes(8, "little") + told + content[8 + size :])

    return write


def strange(table):
    first = next(name for name in table if name != "__metadata__")
    table[first]["dtype"] = "I128"
    return table


DAMAGES = {
    "short": lambda file: file.write_bytes(file.read_bytes()[:5000]),
    "short by one": lambda file: file.write_bytes(file.read_bytes()[:-1]),
    "long by one": lambda file: file.write_bytes(file.read_bytes() + b"x"),
    "empty": lambda file: file.write_bytes(b""),
    "a page": lambda file: file.write_bytes(b"<html>" * 100),
    "no table": spoil(lambda table: b"[1, 2]"),
    "unknown numbers": spoil(strange),
}


@pytest.mark.parametrize("damage", [*DAMAGES, "no part"])
def test_weights_that_cannot_be_read_are_named(plan, model, damage):
    made = plan()
    folder = model / "transformer"
    if damage in DAMAGES:
        DAMAGES[damage](folder / FILE)
    else:
        split(folder)
        (folder / "part-1.safetensors").unlink()
    with pytest.raises(ModelError, match=r"transformer of .* cannot be loaded.*is complete"):
        loaded(made)


def test_quantizing_is_told_as_it_was(plan):
    events = []
    loaded(plan(quantization={"name": "int8"}), events)
    finished = [event for event in events if isinstance(event, PhaseFinished)]
    assert [event.phase for event in finished] == ["load", "quantize"]
    assert finished[-1].note == "56 layers"
