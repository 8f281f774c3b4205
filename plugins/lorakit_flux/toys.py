"""The toy of each variant, made of the one that is shipped, which is dev's."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers.models.embeddings import TimestepEmbedding, get_timestep_embedding
from safetensors.torch import load_file, save_file
from torch import Tensor

from lorakit import Variant, toys

BIAS = "time_text_embed.text_embedder.linear_2.bias"
TOLD = 3.5
"""The guidance that is baked into the toy of a variant without guidance."""


def write(shipped: Path, folder: Path, variant: Variant) -> None:
    """Copy the shipped model folder; where the variant takes no guidance, the transformer loses that input."""
    toys.copy(shipped, folder, variant, {})
    if variant.guidance == "none":
        weights = folder / "transformer" / "diffusion_pytorch_model.safetensors"
        save_file(unguided(load_file(weights)), weights, {"format": "pt"})
        toys.rewrite(folder / "transformer" / "config.json", {"guidance_embeds": False})
        toys.rewrite(folder / "scheduler" / "scheduler_config.json", {"shift": 1.0, "use_dynamic_shifting": False})


def unguided(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a transformer that answers as this one does when it is told TOLD.

    Its guidance enters as one addend of the conditioning, so that a fixed one can stand in the bias of another.
    """
    kept = {name: tensor for name, tensor in weights.items() if ".guidance_embedder." not in name}
    embedder = TimestepEmbedding(256, len(weights[BIAS])).double()
    own = "time_text_embed.guidance_embedder."
    embedder.load_state_dict({name.removeprefix(own): tensor for name, tensor in weights.items() if name not in kept})
    with torch.no_grad():
        told = embedder(get_timestep_embedding(torch.tensor([TOLD * 1000]), 256, True, 0.0).double())[0]
    kept[BIAS] = (weights[BIAS].double() + told).to(weights[BIAS].dtype)
    return kept
