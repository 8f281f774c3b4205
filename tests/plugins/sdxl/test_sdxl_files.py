"""The file that SDXL exports: kohya's names at full size, its number format, metadata and proof."""

from __future__ import annotations

import json

import pytest
import safetensors
import torch
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from lorakit.dataset import Dataset
from lorakit.engine import layouts, lora_file, proof
from lorakit.engine.adapter import Host, attach
from lorakit.engine.cache import write_atomically
from lorakit_sdxl.family import Sdxl, stability_name
from lorakit_sdxl.model import SdxlDenoiser

# unet/config.json of stabilityai/stable-diffusion-xl-base-1.0
PUBLISHED = {
    "sample_size": 128,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (320, 640, 1280),
    "layers_per_block": 2,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": (5, 10, 20),
    "use_linear_projection": True,
    "transformer_layers_per_block": (1, 2, 10),
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
    "cross_attention_dim": 2048,
}
# where Stability AI's sd_xl_base.yaml puts transformers (attention_resolutions 4 and 2), and how deep they are
DEPTHS = {
    **dict.fromkeys(("input_blocks_4_1", "input_blocks_5_1"), 2),
    **dict.fromkeys(("input_blocks_7_1", "input_blocks_8_1", "middle_block_1"), 10),
    **dict.fromkeys(("output_blocks_0_1", "output_blocks_1_1", "output_blocks_2_1"), 10),
    **dict.fromkeys(("output_blocks_3_1", "output_blocks_4_1", "output_blocks_5_1"), 2),
}
ATTENTION = [f"attn{number}_{name}" for number in (1, 2) for name in ("to_q", "to_k", "to_v", "to_out_0")]
GOLDEN = {
    *(f"lora_unet_{place}_{name}" for place in DEPTHS for name in ("proj_in", "proj_out")),
    *(
        f"lora_unet_{place}_transformer_blocks_{number}_{name}"
        for place, depth in DEPTHS.items()
        for number in range(depth)
        for name in (*ATTENTION, "ff_net_0_proj", "ff_net_2")
    ),
}
CLIP = ["self_attn_q_proj", "self_attn_k_proj", "self_attn_v_proj", "self_attn_out_proj", "mlp_fc1", "mlp_fc2"]


class Published:
    """The published denoiser, without memory behind its weights."""

    def load(self, kind, component):
        with torch.device("meta"):
            return kind(**PUBLISHED)


@pytest.fixture(scope="module")
def published():
    return SdxlDenoiser(Published())


def adapted(denoiser, plan, also=()):
    return attach(denoiser, plan.settings.lora, 0, torch.device("cpu"), also)


def test_all_722_layers_have_kohyas_names(published):
    names = {id(module): name for name, module in published.module.named_modules()}
    inside = [
        f"{names[id(block)]}.{name}"
        for block in published.blocks
        for name, module in block.named_modules()
        if isinstance(module, nn.Linear)
    ]
    targets = Sdxl.lora_targets
    assert all(any(name.endswith(f".{target}") for target in targets) for name in inside)
    found = {layouts.exported(Sdxl(), f"unet.{name}") for name in inside}
    assert len(inside) == len(found) == len(GOLDEN) == 722
    assert found == GOLDEN
    assert "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q" in found
    assert all(layouts.COMFYUI.match(name) for name in found)


def test_every_name_means_the_layer_that_diffusers_conversion_means(published):
    """diffusers turns Stability AI's names into its own: back from ours, every layer must come out itself."""
    layers = [f"{name}.weight" for name, _ in published.module.named_modules() if ".attentions." in name]
    stability = {f"model.diffusion_model.{stability_name(name)}": name for name in layers}
    assert len(stability) == len(layers)
    for side, count in (("input_blocks", 9), ("middle_block", 3), ("output_blocks", 9)):  # it counts the places
        stability |= {f"model.diffusion_model.{side}.{number}.0.in_layers.0.bias": "" for number in range(count)}
    back = convert_ldm_unet_checkpoint(stability, {"layers_per_block": 2})
    assert {name: was for name, was in back.items() if ".attentions." in name and was} == {one: one for one in layers}


@pytest.mark.parametrize(
    ("kind", "component", "layers", "which"),
    [(CLIPTextModel, "text_encoder", 12, 1), (CLIPTextModelWithProjection, "text_encoder_2", 32, 2)],
)
def test_text_encoders_are_named_text_model_whatever_transformers_calls_them(kind, component, layers, which):
    with torch.device("meta"):
        made = kind(CLIPTextConfig(num_hidden_layers=layers))
    found = {
        layouts.exported(Sdxl(), f"{component}.{name}")
        for name, module in made.named_modules()
        if isinstance(module, nn.Linear) and name.endswith(Sdxl.text_targets)
    }
    start = f"lora_te{which}_text_model_encoder_layers"
    assert found == {f"{start}_{number}_{name}" for number in range(layers) for name in CLIP}
    assert all(layouts.COMFYUI.match(name) for name in found)
    plain = "encoder.layers.3.mlp.fc1"
    assert Sdxl().exported_name(component, plain) == Sdxl().exported_name(component, f"text_model.{plain}")


@pytest.fixture
def written(make_plan, denoiser, encoder, tmp_path):
    """A plan that trains text encoders, its adapter shaken, and the file of it."""
    plan = make_plan(lora={"alpha": 2.0}, text_encoder={"train": True}, save={"dtype": "fp16"}, trigger="sks")
    parts = encoder.module
    hosts = [Host(name, parts.get_submodule(name), (parts.get_submodule(name),), Sdxl.text_targets) for name in parts]
    adapter = adapted(denoiser, plan, hosts)
    adapter.flat.data.normal_(std=0.05, generator=torch.Generator().manual_seed(3))
    file = tmp_path / "x.safetensors"
    write_atomically(file, lora_file.encode(plan, Sdxl(), adapter, Dataset(), 1))
    yield plan, adapter, file
    for host in hosts:  # the encoders are shared by the session
        for name, module in list(host.module.named_modules()):
            if hasattr(module, "lora_A"):
                host.module.set_submodule(name, module.base)


def test_tensors_are_kohyas_halves_in_fp16_with_an_alpha_of_the_rank(written):
    _, adapter, file = written
    with safetensors.safe_open(file, "pt") as opened:
        held = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        about = opened.metadata()
    assert len(held) == 3 * len(adapter.layers)
    layer = "lora_te2_text_model_encoder_layers_2_mlp_fc1"
    assert held[f"{layer}.lora_down.weight"].shape == (4, 48)
    assert held[f"{layer}.lora_up.weight"].shape == (96, 4)
    assert {one.dtype for one in held.values()} == {torch.float16}
    assert {float(one) for name, one in held.items() if name.endswith(".alpha")} == {4.0}
    assert all(name.startswith(("lora_unet_", "lora_te1_", "lora_te2_")) for name in held)  # or diffusers refuses
    assert about["ss_base_model_version"] == "sdxl_base_v1-0"
    assert about["modelspec.architecture"] == "stable-diffusion-xl-v1-base/lora"
    assert json.loads(about["lorakit.config"])["text_encoder"]["train"] is True


@pytest.mark.parametrize("large", [False, True], ids=["loaded twice", "by names and shapes"])
def test_the_proof_holds_with_text_encoders(written, source, monkeypatch, large):
    plan, adapter, file = written
    if large:
        monkeypatch.setattr(proof, "TWICE", 3_000_000)  # the UNet is over it, the encoders are not
    found = proof.prove(file, plan, Sdxl(), source, adapter)
    count = len(adapter.layers)
    assert count == 192 + 2 * 3 * 6
    assert found.holds
    assert str(found).startswith(f"diffusers {count}/{count} modules, scale 1.000 | ComfyUI keys {count}/{count}")


def test_a_file_of_another_scale_is_no_proof(written, source):
    plan, adapter, file = written
    held = safetensors.torch.load_file(file)
    safetensors.torch.save_file({n: one / 2 if n.endswith(".alpha") else one for n, one in held.items()}, file)
    with pytest.raises(Exception, match="differs by 50"):
        proof.prove(file, plan, Sdxl(), source, adapter)
