"""The repeated block compiled: one class, once, and its code kept by torch between runs."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from lorakit.errors import LorakitError, ModelError

FORMS = 3
"""Forms of batches that are compiled before training: the second makes what differs a variable of the code."""


def wanted(setting: str, device: torch.device) -> bool:
    """Whether blocks are compiled on a device, under `speed.compile`."""
    if setting == "auto":
        return device.type == "cuda" and importlib.util.find_spec("triton") is not None
    return setting == "blocks"


def compile_blocks(blocks: Sequence[nn.Module], backend: str = "inductor") -> None:
    """Let every block compute by compiled code wherever gradients are wanted; previews go on as they were.

    Blocks of one class share the code, so the second costs next to nothing.
    """
    for block in blocks:
        block.forward = partial(_either, block.forward, torch.compile(block.forward, backend=backend))


def _either(plain: Callable[..., Any], compiled: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    return compiled(*args, **kwargs) if torch.is_grad_enabled() else plain(*args, **kwargs)


def failed(error: Exception) -> LorakitError | None:
    """What a person is told where compiling failed; None where it is something else that did."""
    if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
        return None
    return ModelError(
        "the model's blocks cannot be compiled",
        where="speed.compile",
        why=f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), '')[:200]}",
        fix="Set speed.compile = 'off'. On a CPU it needs a C++ compiler, on CUDA triton.",
    )
