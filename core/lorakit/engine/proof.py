"""Proof that a file works elsewhere: read back by diffusers into a fresh base, and by ComfyUI's rules for keys."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from lorakit.engine.adapter import Adapter
from lorakit.engine.parts import Denoiser, Source
from lorakit.errors import TrainingError
from lorakit.family import Family
from lorakit.plan import Plan

TWICE = 4_000_000_000
"""Bytes of weights up to which the base is really loaded a second time; above, its names and shapes alone are."""

TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 1e-2, torch.float16: 2e-3}
"""Relative error of B A that rounding to the format of the base that reads the file explains."""

# ComfyUI maps `transformer.<layer>` to its own layer where it knows one of that name, and asks for both halves
# (comfy/lora.py and comfy/weight_adapter/lora.py, read and restated; see docs/files.md).
COMFYUI = re.compile(r"^transformer\.(?P<layer>.+)\.lora_(?P<half>[AB])\.weight$")


@dataclass(frozen=True, slots=True)
class Proof:
    """What was found: modules loaded of those trained, the scale of their effect, and keys that ComfyUI takes."""

    loaded: int
    accepted: int
    modules: int
    scale: float
    fresh: bool

    def __str__(self) -> str:
        base = "" if self.fresh else " (names and shapes only: the base is too large to load twice)"
        return (
            f"diffusers {self.loaded}/{self.modules} modules, scale {self.scale:.3f} | "
            f"ComfyUI keys {self.accepted}/{self.modules}{base}"
        )

    @property
    def holds(self) -> bool:
        """Whether every module loads everywhere at its trained strength."""
        return self.loaded == self.accepted == self.modules and abs(self.scale - 1) < 5e-3


def prove(file: Path, plan: Plan, family: Family, source: Source, denoiser: Denoiser, adapter: Adapter) -> Proof:
    """Read `file` back and compare with the adapter; TrainingError where an effect differs by more than rounding."""
    try:
        held = safetensors.torch.load_file(file)
    except (OSError, SafetensorError) as error:
        raise TrainingError(
            f"{file} cannot be read back", why=str(error), fix="Check the disk; the checkpoints are beside it."
        ) from error
    dtype = next(iter(held.values())).dtype  # what was trained, as the file's format can say it
    expected = {name: (lora_a.to(dtype), lora_b.to(dtype)) for name, lora_a, lora_b in adapter.pairs()}
    fresh = _size(source.folder / denoiser.component) <= TWICE
    base = fresh_base(plan, family, source, denoiser, fresh)
    shapes = {name: (layer.in_features, layer.out_features) for name, layer in _linears(base)}
    found = load_into(base, file, held, plan, family, denoiser.component)
    worst, scale, loaded = compare(found, expected, source.dtype if fresh else dtype)
    if worst:
        raise TrainingError(
            f"{file} does not give back what was trained: {worst}", fix="This is a bug of lorakit; please report it."
        )
    return Proof(loaded, accepted(held, shapes), len(expected), scale, fresh)


def fresh_base(plan: Plan, family: Family, source: Source, denoiser: Denoiser, real: bool) -> nn.Module:
    """The base model anew: loaded from the folder, or without memory behind it."""
    kind = type(denoiser.module)
    if real:
        module: nn.Module = source.load(kind, denoiser.component)
        return module
    with torch.device("meta"):
        config = kind.load_config(source.folder, subfolder=denoiser.component)  # type: ignore[attr-defined]
        built: nn.Module = kind.from_config(config)  # type: ignore[attr-defined]
        return built


def load_into(
    base: nn.Module, file: Path, held: Mapping[str, Tensor], plan: Plan, family: Family, component: str
) -> dict[str, tuple[Tensor, Tensor, float]]:
    """(A, B, scale) of every layer that the family's diffusers pipeline loads from `file`, which holds `held`.

    On a base without memory the layers have shapes and a scale only; their numbers are then taken from the file.
    """
    import diffusers

    kind: Any = getattr(diffusers, family.variants[plan.settings.variant].pipeline)
    names = [name for name in inspect.signature(kind.__init__).parameters if name != "self"]
    pipeline = kind(**{name: base if name == component else None for name in names})
    pipeline.load_lora_weights(str(file.parent), weight_name=file.name, adapter_name="proof")
    found = {}
    for name, module in base.named_modules():
        halves = getattr(module, "lora_A", None), getattr(module, "lora_B", None)
        if halves[0] is not None and "proof" in halves[0]:
            scale = float(module.scaling["proof"])
            lora_a, lora_b = (half["proof"].weight.detach() for half in halves)  # type: ignore[index]
            if lora_a.is_meta:
                lora_a, lora_b = (held[f"{component}.{name}.lora_{half}.weight"] for half in "AB")
            found[name] = (lora_a.cpu(), lora_b.cpu(), scale)
    return found


def compare(
    found: Mapping[str, tuple[Tensor, Tensor, float]],
    expected: Mapping[str, tuple[Tensor, Tensor]],
    dtype: torch.dtype,
) -> tuple[str, float, int]:
    """(what is wrong, or nothing; the mean ratio of effects; layers found): effects are compared as B A."""
    norms = [0.0, 0.0]
    for name, (lora_a, lora_b) in expected.items():
        if name not in found:
            return f"{name} is not loaded", 0.0, len(found)
        wanted = lora_b.double() @ lora_a.double()
        other_a, other_b, scale = found[name]
        got = other_b.double() @ other_a.double() * scale
        size = wanted.norm()
        if (got - wanted).norm() > TOLERANCE[dtype] * size + 1e-12:
            return f"the effect on {name} differs by {float((got - wanted).norm() / size):.2%}", 0.0, len(found)
        norms[0] += float((got * wanted).sum())
        norms[1] += float(size**2)
    return "", norms[0] / norms[1] if norms[1] else 1.0, sum(name in expected for name in found)


def accepted(held: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, int]]) -> int:
    """How many layers of the file ComfyUI would patch: known names, both halves, shapes that fit."""
    halves: dict[str, dict[str, Tensor]] = {}
    for key, tensor in held.items():
        match = COMFYUI.match(key)
        if match and match["layer"] in shapes:
            halves.setdefault(match["layer"], {})[match["half"]] = tensor
    return sum(_fits(pair, shapes[name]) for name, pair in halves.items())


def _fits(pair: Mapping[str, Tensor], shape: tuple[int, int]) -> bool:
    if set(pair) != {"A", "B"}:
        return False
    inputs, outputs = shape
    return pair["A"].shape[1] == inputs and pair["B"].shape[0] == outputs and pair["A"].shape[0] == pair["B"].shape[1]


def _linears(module: nn.Module) -> list[tuple[str, nn.Linear]]:
    return [(name, child) for name, child in module.named_modules() if isinstance(child, nn.Linear)]


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))
