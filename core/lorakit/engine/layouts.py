"""How exported files name the halves of an adapter's layers, and which of those names ComfyUI knows."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lorakit.engine.adapter import Adapter
from lorakit.family import Family


@dataclass(frozen=True, slots=True)
class Naming:
    """What follows a layer's exported name: A (rank, in), B (out, rank), and the scale's alpha, if it is written."""

    lora_a: str
    lora_b: str
    alpha: str | None = None


NAMINGS = {
    # no alpha tensor, because with one the same file fails in one consumer or is scaled twice in another
    "peft": Naming("lora_A.weight", "lora_B.weight"),
    "kohya": Naming("lora_down.weight", "lora_up.weight", "alpha"),
}

# ComfyUI maps these to its own layers where it knows one of that name (comfy/lora.py, restated; see docs/files.md)
COMFYUI = re.compile(
    r"^(transformer\..+"
    r"|text_encoder(_2)?\.text_model\.encoder\.layers\..+"
    r"|lora_unet_(input_blocks|middle_block|output_blocks|down_blocks|mid_block|up_blocks)_.+"
    r"|lora_te[12]_text_model_encoder_layers_.+)$"
)


def exported(family: Family, name: str) -> str:
    """What the family's files call the layer `name`, which begins with its component."""
    component, _, layer = name.partition(".")
    return family.exported_name(component, layer)


def tensors(adapter: Adapter, family: Family, dtype: torch.dtype) -> dict[str, Tensor]:
    """The file's tensors; the scale is folded into B in fp32 and everything cast once, so an alpha equals the rank."""
    naming, found = NAMINGS[family.layout], dict[str, Tensor]()
    for name, lora_a, lora_b in adapter.pairs():
        layer = exported(family, name)
        found[f"{layer}.{naming.lora_a}"] = lora_a.to(dtype)
        found[f"{layer}.{naming.lora_b}"] = lora_b.to(dtype)
        if naming.alpha:
            found[f"{layer}.{naming.alpha}"] = torch.tensor(float(adapter.rank), dtype=dtype)
    return found


def halves(held: Mapping[str, Tensor], family: Family, layer: str) -> tuple[Tensor, Tensor] | None:
    """A and B of the layer with this exported name, where the file has both and nothing scales them."""
    naming = NAMINGS[family.layout]
    lora_a, lora_b = held.get(f"{layer}.{naming.lora_a}"), held.get(f"{layer}.{naming.lora_b}")
    if lora_a is None or lora_b is None:
        return None
    alpha = held.get(f"{layer}.alpha")
    scaled = alpha is not None and float(alpha) != len(lora_a)
    return None if scaled or (alpha is None) != (naming.alpha is None) else (lora_a, lora_b)


def accepted(held: Mapping[str, Tensor], family: Family, shapes: Mapping[str, tuple[int, int]]) -> int:
    """How many layers of the file ComfyUI would patch: known names, both halves, shapes that fit.

    `shapes` are (inputs, outputs) of the base's layers by their full names.
    """
    return sum(
        pair is not None and COMFYUI.match(layer) is not None and _fit(pair, shape)
        for layer, shape in ((exported(family, name), shape) for name, shape in shapes.items())
        for pair in (halves(held, family, layer),)
    )


def _fit(pair: tuple[Tensor, Tensor], shape: tuple[int, int]) -> bool:
    lora_a, lora_b = pair
    return (lora_a.shape[1], lora_b.shape[0]) == shape and lora_a.shape[0] == lora_b.shape[1]
