"""The low-rank adapter: its own weights in one flat fp32 buffer, its names and scale those of peft's format.

One buffer for the weights and one for the gradients make the optimizer, clipping, averaging and saving one operation
each, and let 8-bit optimizers really hold 8-bit state.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lorakit.engine.lora_linear import LoraLinear, Siblings
from lorakit.engine.parts import Denoiser
from lorakit.errors import ModelError
from lorakit.planned import PlannedLora


class Adapter:
    """Every LoraLinear, by the name of the layer it stands on, which begins with its component's.

    `flat` holds all weights and `flat.grad` all gradients; the layers' parameters are views of them, and so are
    `parts`, which learn at rates of their own. `hosts` are the models that it stands on, by component. `strength`
    multiplies the effect and is 1 in training; where `fused`, each layer is one operation in either direction.
    """

    def __init__(
        self,
        layers: Mapping[str, LoraLinear],
        flat: nn.Parameter,
        parts: Sequence[Part],
        hosts: Mapping[str, nn.Module],
        settings: PlannedLora,
        fused: bool = False,
    ) -> None:
        self.layers, self.flat, self.parts, self.hosts = layers, flat, parts, hosts
        self.rank, self.scale, self.dropout = settings.rank, settings.alpha / settings.rank, settings.dropout
        self.strength, self.fused = 1.0, fused
        self.unsettled: list[Siblings] = []

    @property
    def grad(self) -> Tensor:
        """The flat gradient."""
        assert self.flat.grad is not None
        return self.flat.grad

    def train(self) -> None:
        """Put everything that the adapter stands on in its training mode.

        What is in it already is left alone: setting the mode of a thousand modules takes milliseconds.
        """
        self.unsettled = [one for one in self.unsettled if not one.settle()]
        for module in self.hosts.values():
            if not module.training:
                module.train()

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


@dataclass(frozen=True, slots=True)
class Host:
    """A model that an adapter stands on: its sub-folder's name, where layers may be, and which are meant.

    Its part of the adapter learns at `share` times the planned rate.
    """

    component: str
    module: nn.Module
    blocks: Sequence[nn.Module]
    targets: Sequence[str]
    share: float = 1.0


@dataclass(frozen=True, slots=True)
class Part:
    """The weights of one host or several that learn at the same rate: a view of the flat buffer, with its gradient."""

    weights: nn.Parameter
    share: float

    @property
    def group(self) -> dict[str, Any]:
        """As optimizers take it."""
        return {"params": [self.weights], "share": self.share}


def attach(
    denoiser: Denoiser,
    settings: PlannedLora,
    seed: int,
    device: torch.device,
    also: Sequence[Host] = (),
    *,
    fused: bool = True,
) -> Adapter:
    """Put an adapter on every layer, inside the blocks, whose name is or ends with one of the targets.

    `also` are hosts beside the denoiser. A starts as peft starts it, uniform in ±1/sqrt(in) (Kaiming with a = sqrt 5),
    from the seed; B starts at 0, so that an untrained adapter changes nothing. Everything but the adapter is frozen.
    """
    hosts = [Host(denoiser.component, denoiser.module, denoiser.blocks, settings.targets), *also]
    for host in hosts:
        host.module.requires_grad_(False)
    places = [(host, list(_places(host))) for host in hosts]
    size = sum(settings.rank * sum(_width(base)) for _, found in places for *_, base in found)
    flat = nn.Parameter(torch.zeros(size, device=device))
    flat.grad = torch.zeros(size, device=device)
    draws = torch.Generator().manual_seed(seed)
    layers: dict[str, LoraLinear] = {}
    parts: list[Part] = []
    adapter = Adapter(layers, flat, parts, {host.component: host.module for host in hosts}, settings, fused)
    offset, siblings = 0, defaultdict[nn.Module, Siblings](Siblings)
    for host, found in places:
        first = offset
        for name, parent, child, base in found:
            inputs, outputs = _width(base)
            start = torch.empty(settings.rank, inputs).uniform_(-1, 1, generator=draws) / math.sqrt(inputs)
            lora_a, offset = _view(flat, offset, (settings.rank, inputs))
            lora_b, offset = _view(flat, offset, (outputs, settings.rank))
            lora_a.data.copy_(start)
            layers[name] = LoraLinear(base, lora_a, lora_b, adapter, siblings[parent])
            setattr(parent, child, layers[name])
        whole = offset - first == size
        parts.append(Part(flat if whole else _view(flat, first, (offset - first,))[0], host.share))
    adapter.unsettled = list(siblings.values())
    return adapter


def _places(host: Host) -> Iterator[tuple[str, nn.Module, str, nn.Module]]:
    """(name with its component, parent, name there, layer) of every layer that the host's targets mean."""
    names = {id(module): name for name, module in host.module.named_modules()}
    unused = set(host.targets)
    found = []
    for block in host.blocks:
        prefix = ".".join(filter(None, (host.component, names[id(block)])))
        for inner, module in block.named_modules():
            hits = {target for target in host.targets if inner == target or inner.endswith(f".{target}")}
            if hits and hasattr(module, "in_features"):
                unused -= hits
                parent, _, child = inner.rpartition(".")
                found.append((f"{prefix}.{inner}", block.get_submodule(parent), child, module))
    if unused:
        linear = {name for block in host.blocks for name, one in block.named_modules() if hasattr(one, "in_features")}
        raise ModelError(
            f"no linear layer of the model is called {', '.join(sorted(unused))}",
            where="lora.targets",
            fix=f"Layers of its blocks are {', '.join(sorted(linear))}.",
        )
    yield from found


def _width(linear: nn.Module) -> tuple[int, int]:
    return int(linear.in_features), int(linear.out_features)  # type: ignore[arg-type]


def _view(flat: nn.Parameter, offset: int, shape: tuple[int, ...]) -> tuple[nn.Parameter, int]:
    """A leaf parameter that shares the flat buffer's storage, as its gradient shares the flat gradient's."""
    assert flat.grad is not None
    end = offset + math.prod(shape)
    part = nn.Parameter(flat.data[offset:end].view(shape))
    part.grad = flat.grad[offset:end].view(shape)
    return part, end
