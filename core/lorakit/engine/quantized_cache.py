"""Quantized blocks kept on disk, one safetensors file each, so that a second run neither reads nor quantizes them.

A file is named by everything that its values depend on: the folder's contents, the quantizers and their versions, the
training precision. A recovery adapter is none of that: it lies beside the quantized weights and changes none of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from lorakit.engine.cache import Cache
from lorakit.engine.quantizers import Quantizer, Spared, chosen, linears
from lorakit.engine.weights import place


@dataclass(frozen=True, slots=True)
class QuantizedCache:
    """The blocks of one base, `base` being its content's hash and `form` how it is quantized."""

    cache: Cache
    base: str
    form: str
    quantizer: Quantizer
    spared: Spared

    def store(self, name: str, block: nn.Module) -> None:
        """Keep a block."""
        self.cache.store(self._key(name), block.state_dict())

    def restore(self, name: str, block: nn.Module, device: torch.device) -> bool:
        """Fill a block that has no weights, on `device`; False where it is not in the cache, or not whole there."""
        key = self._key(name)
        if key not in self.cache:
            return False
        layers = {path: chosen(path, self.quantizer, self.spared) for path, _ in linears(block)}
        packed = {f"{path}.{part}" for path, quantizer in layers.items() for part in quantizer.packed}
        plain = {one for one in block.state_dict() if one.rpartition(".weight")[0] not in layers}
        try:
            tensors = self.cache.load(key)
        except KeyError:
            tensors = {}
        if set(tensors) != packed | plain:
            self.cache.remove(key)
            return False
        moved = {one: tensor.to(device, copy=True) for one, tensor in tensors.items()}
        for path, quantizer in layers.items():
            linear = block.get_submodule(path)
            assert isinstance(linear, nn.Linear)
            own = {part: moved[f"{path}.{part}"] for part in quantizer.packed}
            block.set_submodule(path, quantizer.rebuild(linear, own))
        for one in plain:
            place(block, one, moved[one])
        block.to(device)
        return True

    def _key(self, name: str) -> str:
        return self.cache.key(kind="quantized", base=self.base, form=self.form, block=name)
