"""Proof that a file works elsewhere: read back by diffusers into a fresh base, and by ComfyUI's rules for keys."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from lorakit.engine import layouts
from lorakit.engine.adapter import Adapter
from lorakit.engine.gathered import kind_of
from lorakit.engine.parts import Source
from lorakit.engine.sharing import loading
from lorakit.errors import TrainingError
from lorakit.family import Family
from lorakit.plan import Plan

TWICE = 4_000_000_000
"""Bytes of weights up to which the base is really loaded a second time; above, its names and shapes alone are."""

TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 1e-2, torch.float16: 2e-3}
"""Relative error of B A that rounding to the format of the base that reads the file explains."""


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


def prove(file: Path, plan: Plan, family: Family, source: Source, adapter: Adapter) -> Proof:
    """Read `file` back and compare with the adapter; TrainingError where an effect differs by more than rounding."""
    try:
        held = safetensors.torch.load_file(file)
    except (OSError, SafetensorError) as error:
        raise TrainingError(
            f"{file} cannot be read back", why=str(error), fix="Check the disk; the checkpoints are beside it."
        ) from error
    dtype = next(iter(held.values())).dtype  # what was trained, as the file's format can say it
    expected = {name: (lora_a.to(dtype), lora_b.to(dtype)) for name, lora_a, lora_b in adapter.pairs()}
    bases = {name: fresh_base(kind_of(module), source, name) for name, module in adapter.hosts.items()}
    fresh = not any(one.is_meta for base in bases.values() for one in base.parameters())
    shapes = {name: shape for component, base in bases.items() for name, shape in _shapes(component, base)}
    found = load_into(bases, file, held, plan, family)
    worst, scale, loaded = compare(found, expected, source.dtype if fresh else dtype)
    if worst:
        raise TrainingError(
            f"{file} does not give back what was trained: {worst}", fix="This is a bug of lorakit; please report it."
        )
    return Proof(loaded, layouts.accepted(held, family, shapes), len(expected), scale, fresh)


def fresh_base(kind: Any, source: Source, component: str) -> nn.Module:
    """A base model anew: loaded from its folder, or without memory behind it where it is too large for that."""
    folder = source.folder / component
    if _size(folder) <= TWICE or not hasattr(kind, "load_config"):
        module: nn.Module = source.load(kind, component)
        return module
    with loading(), torch.device("meta"):
        built: nn.Module = kind.from_config(kind.load_config(folder))
        return built


def load_into(
    bases: Mapping[str, nn.Module], file: Path, held: Mapping[str, Tensor], plan: Plan, family: Family
) -> dict[str, tuple[Tensor, Tensor, float]]:
    """(A, B, scale) of every layer that the family's diffusers pipeline loads from `file`, which holds `held`.

    On a base without memory the layers have shapes and a scale only; their numbers are then taken from the file.
    """
    import diffusers

    kind: Any = getattr(diffusers, family.variants[plan.settings.variant].pipeline)
    asked = inspect.signature(kind.__init__).parameters.values()
    components = [one.name for one in asked if one.name != "self" and (one.name in bases or one.default is one.empty)]
    with loading():
        pipeline = kind(**{name: bases.get(name) for name in components})
        pipeline.load_lora_weights(str(file.parent), weight_name=file.name, adapter_name="proof")
    found = {}
    for component, base in bases.items():
        for name, module in base.named_modules():
            known = getattr(module, "lora_A", None), getattr(module, "lora_B", None)
            if known[0] is None or "proof" not in known[0]:
                continue
            full, scale = f"{component}.{name}", float(module.scaling["proof"])
            pair: Any = tuple(half["proof"].weight.detach() for half in known)  # type: ignore[index]
            if pair[0].is_meta:
                pair = layouts.halves(held, family, layouts.exported(family, full))
                if pair is None:
                    continue
            found[full] = (pair[0].cpu(), pair[1].cpu(), scale)
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


def _shapes(component: str, base: nn.Module) -> Iterator[tuple[str, tuple[int, int]]]:
    """(full name, (inputs, outputs)) of every linear layer."""
    for name, child in base.named_modules():
        if isinstance(child, nn.Linear):
            yield f"{component}.{name}", (child.in_features, child.out_features)


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))
