"""Where a plan's weights come from: the toy, a folder, the hub; and what is said when they do not."""

from __future__ import annotations

import shutil

import huggingface_hub
import pytest
import torch
from diffusers import QwenImageTransformer2DModel
from huggingface_hub.errors import LocalEntryNotFoundError

from lorakit.engine.parts import Source
from lorakit.engine.source import cache_folder, locate
from lorakit.errors import ModelError


def test_the_toy_is_written_once_beside_the_runs(make_plan, family, monkeypatch):
    plan = make_plan(model={"source": "toy"})
    source = locate(plan, family)
    assert source.folder.is_relative_to(cache_folder(plan))
    assert all((source.folder / name).is_dir() for name in family.components)
    monkeypatch.setattr(family, "toy", lambda folder, variant: pytest.fail("written again"))
    assert locate(plan, family) == source


def test_a_toy_that_was_not_finished_is_written_again(make_plan, family):
    plan = make_plan(model={"source": "toy"})
    source = locate(plan, family)
    (source.folder / "complete").unlink()
    (source.folder / "vae" / "config.json").unlink()
    locate(plan, family)
    assert (source.folder / "vae" / "config.json").is_file()


@pytest.mark.parametrize(("precision", "dtype"), [("bf16", torch.bfloat16), ("fp32", torch.float32)])
def test_a_folder_is_taken_as_it_is_in_the_planned_precision(make_plan, family, toy, precision, dtype):
    source = locate(make_plan(train={"precision": precision}), family)
    assert (source.folder, source.dtype) == (toy, dtype)
    module = source.load(QwenImageTransformer2DModel, "transformer")
    assert {one.dtype for one in module.parameters()} == {dtype}


def test_a_hub_name_is_fetched_without_what_is_not_needed(make_plan, family, toy, monkeypatch):
    asked = {}

    def fetch(name, **options):
        asked.update(options, name=name)
        return str(toy)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    source = locate(make_plan(model={"source": "someone/qwen"}), family)
    assert (source.folder, source.name, asked["name"]) == (toy, "someone/qwen", "someone/qwen")
    assert "model_index.json" in asked["allow_patterns"]
    assert {f"{name}/*" for name in family.components} <= set(asked["allow_patterns"])
    assert "*.bin" in asked["ignore_patterns"]


@pytest.mark.parametrize(
    "error",
    [
        LocalEntryNotFoundError("no connection and nothing cached"),
        OSError("No space left on device"),
        pytest.param("transport", id="connection cut in the middle"),
    ],
)
def test_a_download_that_fails_is_explained(make_plan, family, monkeypatch, error):
    from huggingface_hub.errors import HfHubHTTPError

    transport = HfHubHTTPError.__bases__[0]  # the HTTP library's own error, whichever library it is
    made = transport("peer closed connection") if error == "transport" else error

    def fetch(name, **options):
        raise made

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    with pytest.raises(ModelError, match=r"someone/qwen cannot be fetched.*model\.source.*hf auth login"):
        locate(make_plan(model={"source": "someone/qwen"}), family)


def test_a_lacking_component_is_named(tmp_path):
    source = Source(tmp_path, "someone/qwen", torch.float32)
    with pytest.raises(ModelError, match=r"someone/qwen lacks its transformer.*should be in"):
        source.load(QwenImageTransformer2DModel, "transformer")


@pytest.mark.parametrize("name", ["config.json", "diffusion_pytorch_model.safetensors"])
def test_a_broken_component_is_named(toy, tmp_path, name):
    folder = tmp_path / "transformer"
    folder.mkdir()
    for file in (toy / "transformer").iterdir():
        data = file.read_bytes()
        (folder / file.name).write_bytes(data[: len(data) // 2] if file.name == name else data)
    with pytest.raises(ModelError, match=r"transformer of mine cannot be loaded.*is complete"):
        Source(tmp_path, "mine", torch.float32).load(QwenImageTransformer2DModel, "transformer")


def test_a_model_that_is_gone_is_not_looked_for_on_the_hub(make_plan, family, toy, tmp_path):
    moved = shutil.copytree(toy, tmp_path / "model")
    plan = make_plan(model={"source": str(moved)})
    shutil.rmtree(moved)
    with pytest.raises(ModelError, match=r"the model .*/model is gone"):
        locate(plan, family)
