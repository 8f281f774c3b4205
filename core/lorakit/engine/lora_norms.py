"""How much a LoRA file changes each layer, measured two halves at a time: memory never holds more than one pair."""

from __future__ import annotations

import torch
from safetensors import SafetensorError
from torch import Tensor

from lorakit.engine.headers import opened
from lorakit.errors import ModelError
from lorakit.lora_facts import Facts

LARGEST = 1 << 28
"""Numbers of a half that is measured; one of rank 1024 in a layer 50,000 wide has a fifth of that."""


def norms(facts: Facts) -> dict[str, float]:
    """The Frobenius norm of scale times B A, by the layer's name in the file; not finite where a number is not."""
    try:
        with opened(facts.file) as file:
            return {
                one.name: abs(one.scale) * norm(_half(file, one.down, facts), _half(file, one.up, facts))
                for one in facts.layers
            }
    except SafetensorError as error:
        raise broken(facts, error) from error


def norm(lora_a: Tensor, lora_b: Tensor) -> float:
    """The Frobenius norm of B A, by way of products as large as the rank: the sum over (B^T B) * (A A^T)."""
    rank = lora_a.shape[0]
    first, second = lora_a.reshape(rank, -1).double(), lora_b.reshape(-1, rank).double()
    inner = (second.T @ second) * (first @ first.T)
    return float(inner.sum().clamp(min=0).sqrt())


def broken(facts: Facts, error: Exception) -> ModelError:
    """That the file's tensors cannot be read."""
    return ModelError(
        f"the LoRA file {facts.file} is broken", why=str(error), fix="It was cut short or changed; copy it again."
    )


def _half(file: object, name: str, facts: Facts) -> Tensor:
    part = file.get_slice(name)  # type: ignore[attr-defined]
    size = 1
    for side in part.get_shape():
        size *= side
    if size > LARGEST:
        raise ModelError(f"{name} of {facts.file} has {size} numbers", why=f"half of a LoRA has at most {LARGEST}")
    tensor: Tensor = part[:]
    return tensor if tensor.is_floating_point() else tensor.to(torch.float32)
