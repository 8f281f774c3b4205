"""The exported file: names, scale, metadata, hash, and who may read it."""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat

import pytest
import safetensors
import safetensors.torch
import torch

from lorakit.dataset import index
from lorakit.engine import lora_file
from lorakit.engine.cache import write_atomically

MINIMAL = {
    "format": "pt",
    "modelspec.sai_model_spec": "1.0.1",
    "modelspec.architecture": "Qwen-Image/lora",
    "modelspec.title": "run",
    "modelspec.resolution": "32x32",
    "modelspec.trigger_phrase": "sks",
    "ss_trigger_words": "sks",
    "ss_base_model_version": "qwen_image",
    "ss_output_name": "run",
    "ss_network_module": "networks.lora",
    "ss_network_dim": "4",
    "ss_network_alpha": "4",
    "ss_network_args": "{}",
    "ss_v2": "False",
    "lorakit.template": "text-to-image",
}
PRIVATE = ("ss_tag_frequency", "ss_dataset_dirs", "ss_learning_rate", "ss_sd_model_name", "lorakit.config")


@pytest.fixture
def written(make_trainer, family, tmp_path):
    def write(plan):
        trainer = make_trainer(plan, noise=0.1)
        dataset = index(plan.settings.data, family.sizing(plan.settings.variant, None, None))
        path = tmp_path / "x.safetensors"
        write_atomically(path, lora_file.encode(plan, family, trainer.adapter, dataset, 5))
        return path, trainer.adapter

    return write


def metadata(path) -> dict[str, str]:
    with safetensors.safe_open(path, "pt") as file:
        return file.metadata() or {}


def test_names_are_pefts_with_the_component_and_no_alpha(make_plan, written):
    path, adapter = written(make_plan())
    held = safetensors.torch.load_file(path)
    assert set(held) == {f"{name}.lora_{half}.weight" for name in adapter.layers for half in "AB"}
    assert all(re.fullmatch(r"transformer\.transformer_blocks\.\d+\.attn\.(to_q|to_out\.0)\..*", key) for key in held)


@pytest.mark.parametrize("alpha", [2.0, 4.0, 8.0])
def test_the_scale_is_folded_into_b(make_plan, written, alpha):
    path, adapter = written(make_plan(lora={"alpha": alpha}))
    held = safetensors.torch.load_file(path)
    for name, layer in adapter.layers.items():
        assert torch.equal(held[f"{name}.lora_A.weight"], layer.lora_A)
        assert torch.allclose(held[f"{name}.lora_B.weight"], layer.lora_B * (alpha / 4))
    assert metadata(path)["ss_network_alpha"] == metadata(path)["ss_network_dim"]  # whoever reads it scales by 1


@pytest.mark.parametrize(
    ("name", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16), ("fp32", torch.float32)]
)
def test_the_number_format_is_the_planned_one(make_plan, written, name, dtype):
    path, _ = written(make_plan(save={"dtype": name}))
    assert {tensor.dtype for tensor in safetensors.torch.load_file(path).values()} == {dtype}


def test_minimal_metadata_names_the_model_and_nothing_of_the_pictures(make_plan, written):
    path, _ = written(make_plan(save={"metadata": "minimal"}))
    about = metadata(path)
    assert about.items() >= MINIMAL.items()
    assert not set(PRIVATE) & set(about)
    assert "lora_adapter_metadata" not in about  # diffusers would scale by it


def test_full_metadata_tells_how_it_was_made(make_plan, written, pictures):
    path, _ = written(make_plan())
    about = metadata(path)
    assert about.items() >= MINIMAL.items()
    assert set(PRIVATE) <= set(about)
    assert json.loads(about["ss_dataset_dirs"]) == {"pictures": {"n_repeats": 1, "img_count": 4}}
    tags = json.loads(about["ss_tag_frequency"])
    assert tags["pictures"]["sks"] == 4
    assert tags["pictures"]["a red circle"] == 1
    assert about["ss_steps"] == "5"
    assert about["ss_num_train_images"] == "4"
    assert json.loads(about["lorakit.config"])["lora"]["rank"] == 4
    own_paths = str(pictures.parent)
    assert not any(own_paths in about[key] for key in about if key != "ss_sd_model_name")


LEAKS = {
    "full": {"folder", "caption", "prompt", "trigger", "name"},
    "minimal": {"trigger", "name"},
    "none": set(),
}


@pytest.mark.parametrize("level", LEAKS)
def test_what_each_level_of_metadata_gives_away(make_plan, written, pictures, tmp_path, monkeypatch, level):
    """Looked for in the whole file; the path, the picture's name, the hub's token and the output are in none."""
    folder = pictures.rename(tmp_path / "secretfolder")
    (folder / "0.png").rename(folder / "secretpicture.png")
    (folder / "0.txt").rename(folder / "secretpicture.txt")
    (folder / "secretpicture.txt").write_text("secretcaption, on a chair")
    monkeypatch.setenv("HF_TOKEN", "secrettoken")
    plan = make_plan(
        data=[{"folder": str(folder)}],
        trigger="secrettrigger",
        name="secretname",
        output=str(tmp_path / "secretoutput"),
        sampling={"prompts": ["secretprompt", "the secrettoken"], "every": 1},
        save={"metadata": level},
    )
    path, _ = written(plan)
    found = set(re.findall(rb"secret(\w+)", path.read_bytes()))
    assert {one.decode() for one in found} == LEAKS[level]
    assert str(tmp_path).encode() not in path.read_bytes()


@pytest.mark.parametrize("detail", ["full", "minimal"])
def test_the_sampling_that_belongs_to_it_is_told(make_plan, written, detail):
    plan = make_plan(save={"metadata": detail}, sampling={"recipe": "comfyui", "guidance": 1, "steps": 9})
    told = json.loads(metadata(written(plan)[0])["lorakit.sampling"])
    assert told == {"recipe": "comfyui", "guidance": 1, "steps": 9, "shift": 3.0}


def test_no_metadata_is_none(make_plan, written):
    path, _ = written(make_plan(save={"metadata": "none"}))
    assert metadata(path) == {}
    assert safetensors.torch.load_file(path)


def test_the_hash_is_of_the_bytes_after_the_header(make_plan, written):
    path, _ = written(make_plan())
    data = path.read_bytes()
    digest = hashlib.sha256(data[8 + int.from_bytes(data[:8], "little") :]).hexdigest()
    assert metadata(path)["modelspec.hash_sha256"] == f"0x{digest}"
    assert metadata(path)["sshs_model_hash"] == digest


def test_other_users_can_read_the_file(make_plan, written):
    before = os.umask(0o022)
    try:
        path, _ = written(make_plan())
        assert stat.S_IMODE(path.stat().st_mode) == 0o644
    finally:
        os.umask(before)
