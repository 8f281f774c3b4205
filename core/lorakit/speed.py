"""What is decided about `[speed]`: which faster ways a plan takes, why, and which cannot be taken."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lorakit.checks import no_effect
from lorakit.errors import ConfigError
from lorakit.family import Family, Variant
from lorakit.registry import Part
from lorakit.request import Request

Fill = Callable[[str, object, str, str], None]
"""Sets a setting that nobody set: its name, the value, who decides and why."""


def fill(
    put: Fill,
    table: dict[str, Any],
    request: Request,
    family: Family,
    variant: Variant,
    quantizer: Part,
    optimizer: Part,
) -> None:
    """Which of the faster ways are taken."""
    settings = request.settings
    on_cpu, compiled = settings.model.device == "cpu", settings.speed.compile in ("auto", "blocks")
    _fill_modulation(put, table, request, family)
    because = "which is the fastest depends on the card" if not on_cpu else "there is nothing to choose from on a CPU"
    put("speed.attention", "torch" if on_cpu else "timed", "lorakit", because)
    put("speed.compile", "off", "lorakit", "compiling takes a minute or more, and long runs alone earn it back")
    if compiled or settings.lora.dropout:
        because = "compiling fuses it anyway" if compiled else "dropout acts between its operations"
        put("speed.adapter", "plain", "lorakit", because)
    else:
        put("speed.adapter", "fused", "lorakit", "fewer operations for the same sums")
    if quantizer.kernels:
        obstacle = _no_kernels(table, compiled)
        because = obstacle or "one kernel multiplies, scales, adds the bias and casts"
        put("speed.products", "torch" if obstacle else "triton", "lorakit", because)
    obstacle = _no_graphs(table, settings.speed.recompute, quantizer)
    because = "CUDA graphs were never run on a GPU; they are for small models and pictures, where the host is slow"
    put("speed.graphs", "off", "lorakit", obstacle or because)
    if not settings.train.gradient_checkpointing:
        put("speed.recompute", "all", "lorakit", "of none: train.gradient_checkpointing is off")
    elif settings.speed.offload:
        put("speed.recompute", "all", "lorakit", "nothing of a block stays whose weights travel")
    elif settings.speed.graphs == "on":
        put("speed.recompute", "all", "lorakit", "a captured pass stays as it was captured")
    elif on_cpu or variant.size is None:
        because = "memory is shared with the system" if on_cpu else "the family does not tell what blocks keep"
        put("speed.recompute", "all", "lorakit", because)
    else:
        put("speed.recompute", "fit", "lorakit", "what fits into free memory need not be computed twice")
    if on_cpu or not optimizer.skips:
        because = (
            "a CPU has done all it was given" if on_cpu else f"{optimizer.name} cannot leave weights alone by itself"
        )
        put("speed.losses", "at once", "lorakit", because)
    else:
        put("speed.losses", "late", "lorakit", "the GPU need not wait for them; a bad update changes nothing")


def _no_graphs(table: dict[str, Any], recompute: object, quantizer: Part) -> str:
    """Why passes cannot be captured as CUDA graphs, if they cannot; the first reason of several."""
    device, speed = table["model"]["device"], table["speed"]
    obstacles = {
        f"graphs are CUDA's, and model.device = '{device}'": device in ("cpu", "mps"),
        "lora.dropout draws random numbers in every pass, and a graph has no seed of its own": table["lora"]["dropout"],
        "text_encoder.train lets gradients flow out of the captured pass": table["text_encoder"]["train"],
        "speed.offload has the weights of blocks lie elsewhere in every pass": speed["offload"],
        "speed.compile was never tried together with it": speed["compile"] not in (None, "off"),
        "speed.recompute = 'fit' changes how blocks compute, and a captured pass stays as it was": recompute == "fit",
        "a sharded base is gathered anew in every pass": table["train"]["sharding"] == "sharded",
        f"the layers of quantization.name = '{quantizer.name}' are not known to compute without the host": (
            not quantizer.captured
        ),
    }
    return next((why for why, holds in obstacles.items() if holds), "")


def _graphs(table: dict[str, Any], quantizer: Part, request: Request) -> None:
    """Refuse to capture passes that cannot be."""
    obstacle = _no_graphs(table, request.settings.speed.recompute, quantizer)
    if table["speed"]["graphs"] == "on" and obstacle:
        raise ConfigError(
            "speed.graphs = 'on' is not possible",
            where=request.where("speed.graphs"),
            why=obstacle,
            fix="Leave speed.graphs out, or change that.",
        )


def _no_kernels(table: dict[str, Any], compiled: bool) -> str:
    """Why Triton cannot multiply for a quantizer that leaves it open, if it cannot."""
    device = table["model"]["device"]
    if device in ("cpu", "mps"):
        return f"triton's kernels are for CUDA, and model.device = '{device}'"
    return "compiling fuses what stands around torch's product" if compiled else ""


def _fill_modulation(put: Fill, table: dict[str, Any], request: Request, family: Family) -> None:
    """Whether modulation is worked out ahead: wherever it can be, because the answers are the same."""
    obstacle = no_table(table, family)
    if not family.modulation:
        return
    if not obstacle and request.settings.model.device == "cpu":
        obstacle = "on a CPU all weights lie in host memory, and nothing is gained"
    because = obstacle or f"the same answers, and {', '.join(family.modulation)} stay off the GPU"
    put("speed.modulation", "layers" if obstacle else "table", "lorakit", because)


def refuse(
    table: dict[str, Any], family: Family, variant: Variant, quantizer: Part, optimizer: Part, request: Request
) -> None:
    """Raise ConfigError for ways that are not possible, alone or together."""
    _modulation(table, family, request)
    if table["speed"]["losses"] == "late" and not optimizer.skips:
        raise ConfigError(
            f"speed.losses = 'late' does not go with optimizer.name = '{optimizer.name}'",
            where=request.where("speed.losses"),
            why="it would move weights by a gradient that is not finite before anybody has read that",
            fix="Leave speed.losses out.",
        )
    _offload(table, quantizer, request)
    _faster(table, variant, request)
    _products(table, quantizer, request)
    _graphs(table, quantizer, request)


def no_table(table: dict[str, Any], family: Family) -> str:
    """Why modulation cannot be worked out ahead, if it cannot."""
    if not family.modulation:
        return f"{family.title} has no modulation layers"
    if table["quantization"]["recovery"] is not None:
        return "the recovery adapter corrects quantized modulation layers too"
    if family.modulated_by_text and table["text_encoder"]["train"]:
        return "its modulation depends on the text encoder, which is trained"
    return ""


def _modulation(table: dict[str, Any], family: Family, request: Request) -> None:
    """Refuse to work modulation out ahead where it cannot be, or to say how where there is none."""
    asked, obstacle = request.settings.speed.modulation, no_table(table, family)
    if obstacle and (asked == "table" or (asked and not family.modulation)):
        raise ConfigError(
            f"speed.modulation = '{asked}' is not possible",
            where=request.where("speed.modulation"),
            why=obstacle,
            fix="Leave it out.",
        )


def _offload(table: dict[str, Any], quantizer: Part, request: Request) -> None:
    """Blocks travel only where nothing of them has to stay between their forward and their backward pass."""
    if not table["speed"]["offload"]:
        return
    where = request.where("speed.offload")
    if not table["train"]["gradient_checkpointing"]:
        raise ConfigError(
            "speed.offload needs train.gradient_checkpointing",
            where=where,
            why="without it the backward pass keeps every block's weights on the device",
            fix="Set train.gradient_checkpointing = true, or leave speed.offload out.",
        )
    if quantizer.stays:
        raise ConfigError(
            f"speed.offload does not go with quantization.name = '{quantizer.name}'",
            where=where,
            why="its layers must lie on the device from the start",
            fix="Choose another quantization, or leave speed.offload out.",
        )


def _products(table: dict[str, Any], quantizer: Part, request: Request) -> None:
    """Refuse to let Triton multiply where it cannot, or is not asked to."""
    if request.settings.speed.products != "triton":
        return
    obstacle = f"quantization.name = '{quantizer.name}' has no kernels of its own"
    if quantizer.kernels:
        obstacle = _no_kernels(table, table["speed"]["compile"] != "off")
    if obstacle:
        no_effect(request, "speed.products = 'triton'", obstacle, "speed.products")


def _faster(table: dict[str, Any], variant: Variant, request: Request) -> None:
    """Refuse ways to be faster that cannot be taken together."""
    speed, dropout = request.settings.speed, table["lora"]["dropout"]
    compiled = table["speed"]["compile"] != "off"
    if speed.adapter == "fused" and (compiled or dropout):
        why = "speed.compile is not off" if compiled else f"lora.dropout = {dropout:g}"
        no_effect(request, "speed.adapter = 'fused'", f"{why}, which needs the plain operations", "speed.adapter")
    if speed.attention == "timed" and table["model"]["device"] in ("cpu", "mps"):
        no_effect(request, "speed.attention = 'timed'", "kernels are timed on CUDA", "speed.attention")
    if speed.recompute not in (None, "all") and not table["train"]["gradient_checkpointing"]:  # all of none is decided
        no_effect(request, "speed.recompute", "train.gradient_checkpointing is off")
    if speed.offload and (compiled or table["speed"]["recompute"] != "all"):
        name, value = ("compile", "off") if compiled else ("recompute", "all")
        raise ConfigError(
            f"speed.offload needs speed.{name} = '{value}'",
            where=request.where(f"speed.{name}") or request.where("speed.offload"),
            why="the weights of blocks that travel lie elsewhere in every pass",
            fix=f"Leave speed.{name} out, or speed.offload.",
        )
    if speed.recompute == "fit" and variant.size is None:
        raise ConfigError(
            "speed.recompute = 'fit' is not possible",
            where=request.where("speed.recompute"),
            why="the family does not tell what its blocks keep",
            fix="Say how many blocks, or all.",
        )
