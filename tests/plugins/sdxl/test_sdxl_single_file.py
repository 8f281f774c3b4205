"""A model that is one file: known by its header alone, unpacked once, and the same as its folder."""

from __future__ import annotations

import json
import shutil

import pytest
import safetensors.torch
import torch

from lorakit.cli import run
from lorakit.engine.parts import Batch, Source
from lorakit.engine.source import cache_folder, locate
from lorakit.errors import ConfigError, ModelError
from lorakit.single_file import Stored
from lorakit_sdxl.family import NEEDED, UNET, Sdxl
from lorakit_sdxl.model import SdxlDenoiser, SdxlImageCoder, SdxlTextEncoder
from tests.plugins.sdxl import single_file
from tests.plugins.sdxl.conftest import LONG, SHORT, quiet, texts_of

WHOLE = {name: Stored("F16", (320, 4, 3, 3)) for name in NEEDED.values()}


@pytest.fixture(scope="session")
def file(toy, tmp_path_factory):
    return single_file.write(toy, tmp_path_factory.mktemp("one") / "tune.safetensors")


@pytest.fixture
def plan_for(make_plan, tmp_path, toy):
    def make(file, **tables):
        model = {"source": str(file), "device": "cpu", "config": str(toy), **tables.pop("model", {})}
        return make_plan(model=model, output=str(tmp_path / "runs"), **tables)

    return make


@pytest.fixture
def unpacked(plan_for, file, family):
    return locate(plan_for(file), family)


def test_text_latents_and_prediction_equal_the_folders(unpacked, source, encoder, coder, denoiser):
    assert unpacked.name.endswith("tune.safetensors")
    other = Source(unpacked.folder, "it", torch.float32)
    text, again = texts_of(encoder, SHORT, LONG), texts_of(quiet(SdxlTextEncoder(other)), SHORT, LONG)
    assert torch.equal(text.hidden, again.hidden)
    assert torch.equal(text.pooled, again.pooled)
    pixels = torch.rand(1, 3, 48, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    noisy = torch.randn(2, denoiser.module.config.in_channels, 12, 8, generator=torch.Generator().manual_seed(1))
    about = Batch(text, sizes=torch.tensor([[48, 32, 0, 0, 48, 32]] * 2))
    with torch.no_grad():
        assert torch.equal(coder.encode(pixels), quiet(SdxlImageCoder(other)).encode(pixels))
        t = torch.tensor([4, 900])
        assert torch.equal(denoiser.predict(noisy, t, about), quiet(SdxlDenoiser(other)).predict(noisy, t, about))


def test_it_is_unpacked_once_for_each_content(plan_for, file, family, toy, tmp_path, monkeypatch):
    plan = plan_for(file)
    first = locate(plan, family).folder
    assert first.parent == cache_folder(plan) / "models"
    calls = []
    monkeypatch.setattr(Sdxl, "unpack", lambda self, file, config, folder: calls.append(folder))
    assert locate(plan, family).folder == first
    assert locate(plan_for(shutil.copy(file, tmp_path / "copy.safetensors")), family).folder == first
    assert not calls
    changed = shutil.copytree(toy, tmp_path / "config")
    scheduler = changed / "scheduler" / "scheduler_config.json"
    scheduler.write_text(scheduler.read_text().replace("leading", "trailing"))
    assert locate(plan_for(file, model={"config": str(changed)}), family).folder != first
    assert len(calls) == 1


def test_a_run_on_it_ends_with_a_proof(kit, plan_for, file, pictures):
    plan = plan_for(file, train={"updates": 1}, data=[{"folder": str(pictures)}], trigger="sks")
    assert plan.choices["model.config"].decided_by == "the call"
    last = list(kit.train(plan))[-1]
    assert last.proof == "diffusers 192/192 modules, scale 1.000 | ComfyUI keys 192/192"


@pytest.mark.parametrize(
    ("marks", "changes"),
    [
        ((), {"prediction_type": "epsilon", "rescale_betas_zero_snr": False, "timestep_spacing": "leading"}),
        (("v_pred",), {"prediction_type": "v_prediction", "rescale_betas_zero_snr": False}),
        (("v_pred", "ztsnr"), {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}),
    ],
)
def test_marks_of_trainers_are_heeded(plan_for, family, toy, tmp_path, marks, changes):
    folder = locate(plan_for(single_file.write(toy, tmp_path / "x.safetensors", marks)), family).folder
    about = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
    assert about.items() >= changes.items()


def test_the_number_format_is_the_files(file, plan_for, family, tmp_path):
    def format_of(source):
        return {one.dtype for one in single_file.load(source.folder / "unet").values()}

    assert format_of(locate(plan_for(file), family)) == {torch.float16}
    held = safetensors.torch.load_file(file)
    held[UNET] = held[UNET].float()
    safetensors.torch.save_file(held, tmp_path / "mixed.safetensors")
    assert format_of(locate(plan_for(tmp_path / "mixed.safetensors"), family)) == {torch.float32}


# -- what is no SDXL ---------------------------------------------------------------------------------------------


def test_a_whole_file_is_taken():
    assert Sdxl().file_problem(WHOLE) == ""


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (["cond_stage_model.transformer.text_model.embeddings.position_ids", UNET], "SD1"),
        (["cond_stage_model.model.positional_embedding", UNET], "SD2"),
        (["double_blocks.0.img_attn.qkv.weight"], "FLUX"),
        (["model.diffusion_model.double_blocks.0.img_attn.qkv.weight"], "FLUX"),
        (["model.diffusion_model.joint_blocks.0.x.weight"], "Stable Diffusion 3"),
        (["conditioner.embedders.0.model.text_projection", UNET], "refiner"),
        (["lora_unet_input_blocks_4_1_proj_in.alpha"], "a LoRA"),
        ([*WHOLE, "edm_mean"], "Playground"),
        (["something.else"], "lacks the UNet, the VAE, CLIP-L, OpenCLIP-bigG"),
        ([name for name in WHOLE if "first_stage" not in name], "lacks the VAE"),
    ],
)
def test_another_model_is_told_by_its_names(names, says):
    assert says in Sdxl().file_problem(dict.fromkeys(names, Stored("F16", (4, 4, 3, 3))))


def test_inpainting_and_eight_bits_are_told_by_shape_and_format():
    assert "inpainting" in Sdxl().file_problem({**WHOLE, UNET: Stored("F16", (320, 9, 3, 3))})
    assert "F8_E4M3" in Sdxl().file_problem({**WHOLE, UNET: Stored("F8_E4M3", (320, 4, 3, 3))})


def test_a_file_that_lacks_weights_is_refused_when_it_is_unpacked(file, plan_for, family, tmp_path):
    held = safetensors.torch.load_file(file)
    lost = next(name for name in held if ".input_blocks.4.1." in name)
    safetensors.torch.save_file({n: one for n, one in held.items() if n != lost}, tmp_path / "part.safetensors")
    with pytest.raises(ModelError, match=r"part\.safetensors cannot be unpacked"):
        locate(plan_for(tmp_path / "part.safetensors"), family)
    assert not list((tmp_path / "runs" / ".cache" / "models").iterdir())


# -- in the plan -------------------------------------------------------------------------------------------------


def refused(make, *, error=ModelError, says):
    with pytest.raises(error, match=says):
        make()


def test_files_that_no_plan_takes(plan_for, tmp_path, toy, file):
    old = tmp_path / "old.safetensors"
    names = ["cond_stage_model.transformer.text_model.embeddings.position_ids"]
    safetensors.torch.save_file({name: torch.zeros(1) for name in names}, old)
    refused(lambda: plan_for(old), says=r"old\.safetensors cannot be taught.*\(SD1\).*leave it out for stabilityai/")
    for name in ("model.ckpt", "model.bin"):
        (tmp_path / name).write_bytes(b"x")
        refused(lambda name=name: plan_for(tmp_path / name), says="is pickled.*runs whatever program")
    (tmp_path / "cut.safetensors").write_bytes(file.read_bytes()[:1000])
    refused(lambda: plan_for(tmp_path / "cut.safetensors"), says="is no safetensors file.*does not fit")
    (tmp_path / "text.safetensors").write_bytes((9).to_bytes(8, "little") + b"{not json")
    refused(lambda: plan_for(tmp_path / "text.safetensors"), says="is no safetensors file")
    refused(lambda: plan_for(tmp_path / "none.safetensors"), says="there is no model folder or file")


def test_a_configuration_is_for_single_files_only(plan_for, make_plan, toy, file, tmp_path):
    refused(lambda: plan_for(toy), error=ConfigError, says=r"model\.config would have no effect")
    refused(lambda: plan_for("toy"), error=ConfigError, says=r"model\.config would have no effect")
    refused(lambda: plan_for(file, model={"config": str(tmp_path)}), says="lacks unet, vae, text_encoder")
    refused(lambda: plan_for(file, model={"config": "./none"}), says="no model folder or file ./none")
    plan = make_plan(model={"source": str(file)})
    assert plan.settings.model.config == Sdxl.variants["base"].source
    assert plan.choices["model.config"].decided_by == "family sdxl"


def test_a_prediction_against_a_single_files_own_is_refused_before_anything_is_encoded(
    kit, plan_for, toy, file, tmp_path, pictures
):
    asked = {"scheduler": {"prediction": "v_prediction"}, "train": {"updates": 1}, "trigger": "sks"}
    asked["data"] = [{"folder": str(pictures)}]
    plan = plan_for(file, **asked)
    refused(lambda: list(kit.train(plan)), says="model predicts epsilon, and the settings say v_prediction")
    assert not plan.folder.exists()
    assert not list(cache_folder(plan).glob("??"))  # no text and no latents
    marked = plan_for(single_file.write(toy, tmp_path / "marked.safetensors", ("v_pred",)), **asked)
    assert list(kit.train(marked))[-1].update == 1


def test_a_prediction_against_a_folders_own_is_refused_in_the_plan(make_plan):
    asked = {"scheduler": {"prediction": "v_prediction"}}
    refused(lambda: make_plan(**asked), says="model predicts epsilon, and the settings say v_prediction")
    assert make_plan(scheduler={"prediction": "epsilon"}).settings.scheduler.prediction == "epsilon"


def test_other_families_read_no_single_files(file, capsys):
    assert run(["plan", "--family", "qwen", "--source", str(file)]) == 2
    assert "Qwen-Image is read from folders in diffusers layout, not from single files" in capsys.readouterr().err
