"""LoRA files written anew: in another layout, number format or rank, at another strength, or several as one."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lorakit.engine import lora_pairs
from lorakit.engine.cache import write_atomically
from lorakit.engine.layouts import NAMINGS
from lorakit.engine.lora_file import sealed
from lorakit.engine.lora_pairs import Pair
from lorakit.engine.source import DTYPES
from lorakit.errors import ConfigError, ModelError
from lorakit.layer_names import Layout, Names, resolved
from lorakit.lora_about import EXPORTED, config
from lorakit.lora_facts import ADAPTER, Facts
from lorakit.lora_order import Order

WAS = "lorakit.alpha"
"""Where an exported file says the alpha that was folded into it, if all layers had the same."""
TRIGGERS = ("modelspec.trigger_phrase", "ss_trigger_words")
STALE = (ADAPTER, "modelspec.hash_sha256", "sshs_model_hash", "sshs_legacy_hash", EXPORTED, WAS)
"""Metadata that the new file has anew, or that would no longer be true of it."""


@dataclass(frozen=True, slots=True)
class Exported:
    """A file that was written, and what was done, as its metadata tells it."""

    path: Path
    size: int
    family: str
    layers: int
    done: Mapping[str, Any]


def export(files: Sequence[Facts], order: Order, out: Path) -> Exported:
    """Write `out`; ModelError where a file cannot be read as LoRA halves, or they do not fit together."""
    names = _family_of(files)
    weights = order.weights or (1.0,) * len(files)
    parts = [lora_pairs.load(facts) for facts in files]
    dtype = DTYPES[order.dtype] if order.dtype else _dtype(parts)
    pairs = lora_pairs.joined([lora_pairs.weighted(one, weight) for one, weight in zip(parts, weights, strict=True)])
    done: dict[str, Any] = {
        "files": [{"name": facts.file.name, "weight": weight} for facts, weight in zip(files, weights, strict=True)],
        "layout": order.layout,
    }
    if order.rank:
        found = lora_pairs.resized(pairs, order.rank)
        pairs = found.pairs
        done["resized"] = {"rank": order.rank, "energy": found.energy, "least": found.least, "least_in": found.where}
    pairs, alpha = scaled(pairs, files, order)
    held = tensors(pairs, names, order.layout)
    cast = {name: _cast(name, tensor, dtype) for name, tensor in held.items()}
    ranks = sorted({len(tensor) for name, tensor in held.items() if ".lora_A." in name or ".lora_down." in name})
    done |= {"dtype": str(dtype).removeprefix("torch."), "alpha": alpha, "ranks": ranks}
    scale = next(iter(pairs.values())).scale
    about = metadata(files, done, out, scale) if order.metadata else {}
    data = sealed(cast, about)
    write_atomically(out, data)
    return Exported(out, len(data), names.family.name, len(pairs), done)


def _family_of(files: Sequence[Facts]) -> Names:
    """The family of all the files."""
    found = {facts.family.name: facts.names[0] for facts in files if facts.family}
    if len(found) > 1:
        told = ", ".join(f"{facts.file} is for {facts.family.title}" for facts in files if facts.family)
        raise ConfigError("LoRAs of different families cannot be merged", why=told, fix="Merge files of one base.")
    if not found:
        lora_pairs.load(files[0])  # which says why
    return next(iter(found.values()))


def scaled(pairs: Mapping[str, Pair], files: Sequence[Facts], order: Order) -> tuple[dict[str, Pair], str]:
    """The pairs at the scales that are to be written, and that in words."""
    kohya = resolved(_family_of(files).family, order.layout) == "kohya"
    if order.alpha == "fold":
        folded = any(pair.scale != 1 for pair in pairs.values())
        return {name: pair.at_scale(1.0) for name, pair in pairs.items()}, "folded" if folded else "equal to the rank"
    if not kohya:
        raise ConfigError(
            f"files of the layout {order.layout} have no alpha",
            where="--alpha",
            why="their readers disagree about it",
            fix="Use --layout kohya, or leave --alpha out: it is folded into B.",
        )
    if order.alpha != "restore":
        alpha = order.alpha
        return {name: pair.at_scale(alpha / pair.rank) for name, pair in pairs.items()}, f"{alpha:g}"
    if len(files) > 1 or order.rank:
        raise ConfigError(
            "the alpha of a merged or resized file cannot be restored",
            where="--alpha",
            why="its rank is another",
            fix="Give a number, or leave --alpha out.",
        )
    if any(layer.alpha is not None for layer in files[0].layers):
        return dict(pairs), "as it was"
    was = was_alpha(files[0])
    if was is None:
        raise ConfigError(
            f"{files[0].file} does not say which alpha it was trained with",
            where="--alpha",
            fix="Give a number, or leave --alpha out.",
        )
    return {name: pair.at_scale(was / pair.rank) for name, pair in pairs.items()}, f"restored: {was:g}"


def was_alpha(facts: Facts) -> float | None:
    """The alpha that was folded into a file, by its metadata."""
    lora = config(facts.metadata).get("lora")
    told = facts.metadata.get(WAS) or (lora.get("alpha") if isinstance(lora, dict) else None)
    try:
        alpha = float(told) if told is not None else None
    except (TypeError, ValueError):
        return None
    return alpha if alpha is not None and 0 < alpha < 1e9 else None


def tensors(pairs: Mapping[str, Pair], names: Names, layout: Layout) -> dict[str, Tensor]:
    """The tensors of a file of the layout; alphas are written where it has them, and scales are 1 where it has not."""
    naming = NAMINGS["kohya" if resolved(names.family, layout) == "kohya" else "peft"]
    found: dict[str, Tensor] = {}
    for layer in pairs:
        name, layers = names.written(layer, layout)
        if f"{name}.{naming.lora_a}" in found:
            continue  # with an earlier layer that it is one with there
        pair = lora_pairs.fused([pairs.get(one) for one in layers], name)
        found[f"{name}.{naming.lora_a}"] = pair.lora_a.contiguous()
        found[f"{name}.{naming.lora_b}"] = pair.lora_b.contiguous()
        if naming.alpha:
            found[f"{name}.{naming.alpha}"] = torch.tensor(pair.scale * pair.rank, dtype=torch.float32)
    return found


def metadata(files: Sequence[Facts], done: Mapping[str, Any], out: Path, scale: float) -> dict[str, str]:
    """What all the files say alike, the triggers of all, and what was done; `scale` is alpha over the rank."""
    first, *others = (facts.metadata for facts in files)
    about = {key: value for key, value in first.items() if all(one.get(key) == value for one in others)}
    about = {key: value for key, value in about.items() if key not in STALE}
    for key in TRIGGERS:
        words = dict.fromkeys(facts.metadata[key] for facts in files if facts.metadata.get(key))
        about |= {key: ", ".join(words)} if words else {}
    history = _history(first) if not others else []
    was = _alpha_of(files[0]) if done["alpha"] == "folded" else None
    if was is None and "resized" not in done:
        was = was_alpha(files[0])
    return {
        **about,
        "format": "pt",
        "ss_output_name": out.stem,
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(done["ranks"][-1]),
        "ss_network_alpha": f"{scale * done['ranks'][-1]:g}",
        EXPORTED: json.dumps([*history, done]),
        **({WAS: f"{was:g}"} if was is not None and not others else {}),
    }


def _history(about: Mapping[str, str]) -> list[Any]:
    try:
        found = json.loads(about.get(EXPORTED, "[]"))
    except (ValueError, RecursionError):
        return []
    return found if isinstance(found, list) else []


def _alpha_of(facts: Facts) -> float | None:
    """The alpha of every layer, where it is the same for all."""
    found = {layer.scale * layer.rank for layer in facts.layers}
    return found.pop() if len(found) == 1 else None


def _dtype(parts: Sequence[Mapping[str, Pair]]) -> torch.dtype:
    """The format that holds the halves of every file."""
    return reduce(
        torch.promote_types,
        (one.dtype for pairs in parts for pair in pairs.values() for one in (pair.lora_a, pair.lora_b)),
    )


def _cast(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    if name.endswith(".alpha"):
        return tensor.to(dtype) if float(tensor.to(dtype)) == float(tensor) else tensor
    made = tensor.to(dtype)
    if bool(torch.isfinite(tensor).all()) and not bool(torch.isfinite(made).all()):
        raise ModelError(
            f"{name} holds numbers that are too large for {str(dtype).removeprefix('torch.')}", fix="Use --dtype bf16."
        )
    return made
