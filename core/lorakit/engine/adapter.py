"""The low-rank adapter: its own weights in one flat fp32 buffer, its names and scale those of peft's format.

One buffer for the weights and one for the gradients make the optimizer, clipping, averaging and saving one operation
each, and let 8-bit optimizers really hold 8-bit state.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional

from lorakit.engine.parts import Denoiser
from lorakit.errors import ModelError
from lorakit.planned import PlannedLora


class LoraLinear(nn.Module):
    """A frozen linear layer plus `scale` times B A x, where A is (rank, in) and B (out, rank)."""

    def __init__(self, base: nn.Module, lora_a: nn.Parameter, lora_b: nn.Parameter, adapter: Adapter) -> None:
        super().__init__()
        self.base = base
        self.lora_A, self.lora_B = lora_a, lora_b  # peft's names
        self._adapter = (adapter,)  # in a tuple, so that it is not a sub-module

    def forward(self, x: Tensor) -> Tensor:
        """The base's answer and the adapter's, in the input's number format."""
        adapter = self._adapter[0]
        answer: Tensor = self.base(x)
        if adapter.strength == 0:
            return answer
        seen = functional.dropout(x, adapter.dropout, self.training) if adapter.dropout else x
        inner = functional.linear(seen, self.lora_A.to(x.dtype))
        return answer + functional.linear(inner, self.lora_B.to(x.dtype)) * (adapter.scale * adapter.strength)


class Adapter:
    """Every LoraLinear of a denoiser, by the name of the layer it stands on.

    `flat` holds all weights and `flat.grad` all gradients; the layers' parameters are views of them. `strength`
    multiplies the effect and is 1 in training.
    """

    def __init__(self, layers: Mapping[str, LoraLinear], flat: nn.Parameter, settings: PlannedLora) -> None:
        self.layers, self.flat = layers, flat
        self.rank, self.scale, self.dropout = settings.rank, settings.alpha / settings.rank, settings.dropout
        self.strength = 1.0

    @property
    def grad(self) -> Tensor:
        """The flat gradient."""
        assert self.flat.grad is not None
        return self.flat.grad

    def pairs(self) -> Iterator[tuple[str, Tensor, Tensor]]:
        """(layer name, A, B with the scale folded in), in fp32 on the CPU."""
        for name, layer in self.layers.items():
            yield name, layer.lora_A.detach().cpu().clone(), layer.lora_B.detach().cpu() * self.scale

    @contextmanager
    def at(self, strength: float, weights: Tensor | None = None) -> Iterator[None]:
        """For a while, another strength, and other weights where given."""
        before, own = self.strength, None if weights is None else self.flat.detach().clone()
        try:
            self.strength = strength
            if weights is not None:
                self.flat.data.copy_(weights)
            yield
        finally:
            self.strength = before
            if own is not None:
                self.flat.data.copy_(own)


def attach(denoiser: Denoiser, settings: PlannedLora, seed: int, device: torch.device) -> Adapter:
    """Put an adapter on every layer, inside the blocks, whose name is or ends with one of the targets.

    A starts as peft starts it, uniform in ±1/sqrt(in) (Kaiming with a = sqrt 5), from the seed; B starts at 0, so
    that an untrained adapter changes nothing. Everything but the adapter is frozen.
    """
    denoiser.module.requires_grad_(False)
    places = list(_places(denoiser, settings.targets))
    flat, gradient = _buffers(places, settings.rank, device)
    draws = torch.Generator().manual_seed(seed)
    layers: dict[str, LoraLinear] = {}
    adapter = Adapter(layers, flat, settings)
    offset = 0
    for name, parent, child, base in places:
        inputs, outputs = _width(base)
        start = torch.empty(settings.rank, inputs).uniform_(-1, 1, generator=draws) / math.sqrt(inputs)
        lora_a, offset = _view(flat, gradient, offset, (settings.rank, inputs))
        lora_b, offset = _view(flat, gradient, offset, (outputs, settings.rank))
        lora_a.data.copy_(start)
        layers[name] = LoraLinear(base, lora_a, lora_b, adapter)
        setattr(parent, child, layers[name])
    return adapter


def _places(denoiser: Denoiser, targets: Sequence[str]) -> Iterator[tuple[str, nn.Module, str, nn.Module]]:
    names = {id(module): name for name, module in denoiser.module.named_modules()}
    unused = set(targets)
    found = []
    for block in denoiser.blocks:
        prefix = names[id(block)]
        for inner, module in block.named_modules():
            hits = {target for target in targets if inner == target or inner.endswith(f".{target}")}
            if hits and hasattr(module, "in_features"):
                unused -= hits
                parent, _, child = inner.rpartition(".")
                found.append((f"{prefix}.{inner}", block.get_submodule(parent), child, module))
    if unused:
        linear = sorted({name for name, module in denoiser.blocks[0].named_modules() if hasattr(module, "in_features")})
        raise ModelError(
            f"no linear layer of the model is called {', '.join(sorted(unused))}",
            where="lora.targets",
            fix=f"Layers of a block are {', '.join(linear)}.",
        )
    yield from found


def _width(linear: nn.Module) -> tuple[int, int]:
    return int(linear.in_features), int(linear.out_features)  # type: ignore[arg-type]


def _buffers(
    places: Sequence[tuple[str, nn.Module, str, nn.Module]], rank: int, device: torch.device
) -> tuple[nn.Parameter, Tensor]:
    size = sum(rank * sum(_width(base)) for *_, base in places)
    flat = nn.Parameter(torch.zeros(size, device=device))
    flat.grad = torch.zeros(size, device=device)
    return flat, flat.grad


def _view(flat: nn.Parameter, gradient: Tensor, offset: int, shape: tuple[int, int]) -> tuple[nn.Parameter, int]:
    """A leaf parameter that shares the flat buffer's storage, as its gradient shares the flat gradient's."""
    end = offset + shape[0] * shape[1]
    part = nn.Parameter(flat.data[offset:end].view(shape))
    part.grad = gradient[offset:end].view(shape)
    return part, end
