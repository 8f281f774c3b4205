"""LoRA files over the layers of each family's toy, made of chance."""

import torch

from lorakit.engine.lora_export import tensors
from lorakit.engine.lora_file import sealed
from lorakit.engine.lora_pairs import Pair
from lorakit.layer_names import Names
from lorakit.single_file import header

FAMILIES = ("flux", "qwen", "sdxl")


def toy_layers(family):
    """The layers of the toy's denoiser that files may hold: (outputs, inputs) by name."""
    component, names = family.components[0], Names(family)
    (file,) = (family.toy_folder / component).glob("*.safetensors")
    found = {f"{component}.{name.removesuffix('.weight')}": one.shape for name, one in header(file).items()}
    inside = {name: shape for name, shape in found.items() if ".attn" in name or ".ff" in name or "_mlp" in name}
    inside |= {name: shape for name, shape in found.items() if "single" in name and name.endswith("proj_out")}
    return {name: shape for name, shape in inside.items() if names.read(name) and len(shape) == 2}


def made(family, *, rank=4, scale=1.0, dtype=torch.float32, seed=0):
    """Pairs on every such layer."""
    chance = torch.Generator().manual_seed(seed)
    return {
        name: Pair(
            (torch.randn(rank, inputs, generator=chance) / 16).to(dtype),
            (torch.randn(outputs, rank, generator=chance) / 16).to(dtype),
            scale,
        )
        for name, (outputs, inputs) in toy_layers(family).items()
    }


def write(path, family, pairs, layout="diffusers", about=None):
    """The pairs as a file of the layout; its metadata names the family."""
    told = {"ss_base_model_version": family.base_model_version, **(about or {})}
    path.write_bytes(sealed(tensors(pairs, Names(family), layout), told))
    return path


def effect(pair):
    return pair.scale * pair.lora_b.double() @ pair.lora_a.double()
