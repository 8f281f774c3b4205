"""A diffusers folder of SDXL's classes as one file in Stability AI's layout: the reverse of diffusers' conversion."""

from __future__ import annotations

import re
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
OUTER = {
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}
CLIP = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}
VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def write(folder: Path, file: Path, marks: tuple[str, ...] = ()) -> Path:
    """Write `file`; `marks` are empty tensors that some trainers add."""
    unet = load(folder / "unet")
    held = {f"model.diffusion_model.{unet_name(name, unet)}": one for name, one in unet.items()}
    coder = load(folder / "vae")
    stages = 1 + max(int(name.split(".")[2]) for name in coder if name.startswith("decoder.up_blocks"))
    for name, one in coder.items():
        held[f"first_stage_model.{vae_name(name, stages)}"] = (
            one[:, :, None, None] if ".attentions." in name and one.ndim == 2 else one
        )
    for name, one in load(folder / "text_encoder").items():
        plain = name.removeprefix("text_model.")
        held[f"conditioner.embedders.0.transformer.text_model.{plain}"] = one
    held |= {f"conditioner.embedders.1.model.{name}": one for name, one in open_clip(load(folder / "text_encoder_2"))}
    held |= {mark: torch.zeros(0) for mark in marks}
    safetensors.torch.save_file({name: one.contiguous() for name, one in held.items()}, file)
    return file


def load(folder: Path) -> dict[str, Tensor]:
    (file,) = folder.glob("*.safetensors")
    return safetensors.torch.load_file(file)


def unet_name(name: str, unet: dict[str, Tensor]) -> str:
    for ours, theirs in OUTER.items():
        if name.startswith(f"{ours}."):
            return name.replace(ours, theirs)
    if name.startswith("mid_block"):
        kind, place, rest = re.match(r"mid_block\.(\w+)\.(\d)\.(.+)", name).groups()
        return f"middle_block.{1 if kind == 'attentions' else 2 * int(place)}.{inner(kind, rest)}"
    side, stage, kind, place, rest = re.match(r"(\w+)_blocks\.(\d)\.(\w+)\.(\d)\.(.+)", name).groups()
    stage, place = int(stage), int(place)
    if kind == "downsamplers":
        return f"input_blocks.{3 * stage + 3}.0.op.{rest.removeprefix('conv.')}"
    if kind == "upsamplers":
        attends = any(one.startswith(f"up_blocks.{stage}.attentions") for one in unet)
        return f"output_blocks.{3 * stage + 2}.{2 if attends else 1}.{rest}"
    where = f"input_blocks.{3 * stage + place + 1}" if side == "down" else f"output_blocks.{3 * stage + place}"
    return f"{where}.{1 if kind == 'attentions' else 0}.{inner(kind, rest)}"


def inner(kind: str, rest: str) -> str:
    if kind == "attentions":
        return rest
    layer, _, leaf = rest.rpartition(".")
    return f"{RESNET[layer]}.{leaf}"


def vae_name(name: str, stages: int) -> str:
    name = re.sub(r"down_blocks\.(\d)\.resnets", r"down.\1.block", name)
    name = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", name)
    name = re.sub(r"up_blocks\.(\d)\.resnets", lambda found: f"up.{stages - 1 - int(found[1])}.block", name)
    name = re.sub(r"up_blocks\.(\d)\.upsamplers\.0", lambda found: f"up.{stages - 1 - int(found[1])}.upsample", name)
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda found: f"mid.block_{int(found[1]) + 1}", name)
    if "mid_block.attentions.0" in name:
        name = name.replace("mid_block.attentions.0", "mid.attn_1")
        for ours, theirs in VAE_ATTENTION.items():
            name = name.replace(f"attn_1.{ours}.", f"attn_1.{theirs}.")
    return name.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")


def open_clip(encoder: dict[str, Tensor]):
    """OpenCLIP's own names, with the three projections of attention in one tensor."""
    yield "text_projection", encoder["text_projection.weight"].T
    for name, one in encoder.items():
        name = name.removeprefix("text_model.")
        if name.startswith("embeddings.token"):
            yield "token_embedding.weight", one
        elif name.startswith("embeddings.position_embedding"):
            yield "positional_embedding", one
        elif name.startswith("final_layer_norm"):
            yield name.replace("final_layer_norm", "ln_final"), one
        elif name.startswith("encoder.layers"):
            _, _, number, layer = name.split(".", 3)
            layer, _, leaf = layer.rpartition(".")
            start = f"transformer.resblocks.{number}"
            if layer == "self_attn.q_proj":
                parts = [encoder[f"text_model.{name.replace('q_proj', f'{part}_proj')}"] for part in "qkv"]
                yield f"{start}.attn.in_proj_{leaf}", torch.cat(parts)
            elif layer in CLIP:
                yield f"{start}.{CLIP[layer]}.{leaf}", one
