"""Accuracy recovery adapters in use: a low-rank correction of each quantized layer, always active and never trained.

The file is an ordinary LoRA: `lora_A` (rank, in) and `lora_B` (out, rank) of each layer, under the prefix
`transformer.`, `diffusion_model.` or none, with scale 1. Files made here also say which base and which quantization
they are for; those made elsewhere are checked by names and shapes alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn import functional

from lorakit.engine.headers import opened
from lorakit.errors import ModelError

KEY = re.compile(r"^(?:transformer\.|diffusion_model\.)?(?P<layer>.+)\.lora_(?P<half>[AB])(?:\.default)?\.weight$")
BASE, QUANTIZATION, RANK = "lorakit.recovery.base", "lorakit.recovery.quantization", "lorakit.recovery.rank"
WHERE = "quantization.recovery"

Halves = tuple[Tensor, Tensor]


class Corrected(nn.Module):
    """A frozen linear layer plus B A x, frozen too; A is (rank, in) and B (out, rank)."""

    lora_a: Tensor
    lora_b: Tensor

    def __init__(self, base: nn.Module, lora_a: Tensor, lora_b: Tensor) -> None:
        super().__init__()
        self.base = base
        self.in_features, self.out_features = lora_a.shape[1], lora_b.shape[0]
        self.register_buffer("lora_a", lora_a)
        self.register_buffer("lora_b", lora_b)

    def forward(self, x: Tensor) -> Tensor:
        """The base's answer, corrected, in the input's number format."""
        answer: Tensor = self.base(x)
        return answer + functional.linear(functional.linear(x, self.lora_a.to(x.dtype)), self.lora_b.to(x.dtype))


@dataclass(frozen=True, slots=True)
class Recovery:
    """A recovery adapter as read from its file."""

    path: Path
    rank: int
    layers: Mapping[str, Halves]
    about: Mapping[str, str] = field(default_factory=dict)


def read(path: Path) -> Recovery:
    """The recovery adapter in `path`, whole and of one rank."""
    try:
        with opened(path) as file:
            about = dict(file.metadata() or {})
            halves: dict[str, dict[str, Tensor]] = {}
            for key in file.keys():  # noqa: SIM118  (not a mapping)
                match = KEY.match(key)
                if match:
                    halves.setdefault(match["layer"], {})[match["half"]] = file.get_tensor(key)
                elif not key.endswith(".alpha"):
                    raise _refused(path, f"its key {key} is not one of a LoRA with lora_A and lora_B")
    except (OSError, SafetensorError) as error:
        raise _refused(path, f"it cannot be read as a safetensors file: {error}") from error
    if not halves:
        raise _refused(path, "it holds no layer")
    for name, pair in halves.items():
        if set(pair) != {"A", "B"} or pair["A"].ndim != 2 or pair["B"].ndim != 2:
            raise _refused(path, f"of {name} it holds lora_{' and lora_'.join(sorted(pair))} in an unknown form")
    rank = len(next(iter(halves.values()))["A"])
    for name, pair in halves.items():
        if len(pair["A"]) != rank or pair["B"].shape[1] != rank:
            raise _refused(path, f"{name} has rank {len(pair['A'])} and {pair['B'].shape[1]}, and others {rank}")
    if about.get(RANK, str(rank)) != str(rank):
        raise _refused(path, f"it says that its rank is {about[RANK]}, and the tensors' is {rank}")
    return Recovery(path, rank, {name: (pair["A"], pair["B"]) for name, pair in halves.items()}, about)


def check(recovery: Recovery, module: nn.Module, fingerprint: str, quantization: str) -> Iterator[str]:
    """Refuse an adapter that does not fit the model; what cannot be checked is said.

    `fingerprint` is that of the model's weights, `quantization` how this plan holds them.
    """
    layers = {name: child for name, child in module.named_modules() if type(child) is nn.Linear}
    unknown = sorted(set(recovery.layers) - set(layers))
    if unknown:
        raise _refused(recovery.path, f"the model has no layer {unknown[0]} ({len(unknown)} such)")
    for name, (lora_a, lora_b) in recovery.layers.items():
        wanted, found = (layers[name].in_features, layers[name].out_features), (lora_a.shape[1], lora_b.shape[0])
        if wanted != found:
            raise _refused(
                recovery.path, f"{name} has {found[0]} inputs and {found[1]} outputs there, and {wanted} here"
            )
    if BASE not in recovery.about:
        yield f"{recovery.path.name} does not say which base it corrects; names and shapes fit, the rest is believed"
        return
    if recovery.about[BASE] != fingerprint:
        raise _refused(recovery.path, "it corrects another base: the weights differ")
    if recovery.about.get(QUANTIZATION) != quantization:
        raise _refused(
            recovery.path,
            f"it corrects the quantization {recovery.about.get(QUANTIZATION)}, and this is {quantization}",
        )


def correct(module: nn.Module, layers: Mapping[str, Halves], prefix: str = "") -> int:
    """Put on every layer of `module` the correction called `prefix` + its name, if there is one; how many there are."""
    found = [name for name in (full.removeprefix(prefix) for full in layers if full.startswith(prefix)) if name]
    for name in found:
        base = module.get_submodule(name)
        device = next(base.buffers(), next(base.parameters(), torch.empty(0))).device
        lora_a, lora_b = (half.to(device) for half in layers[prefix + name])
        module.set_submodule(name, Corrected(base, lora_a, lora_b))
    return len(found)


def _refused(path: Path, why: str) -> ModelError:
    return ModelError(
        f"the recovery adapter {path} does not fit",
        where=WHERE,
        why=why,
        fix="Make one for this model and quantization with `lorakit recover`, or name the one that was.",
    )
