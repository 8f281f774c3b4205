"""Nested values with tensors in them, such as an optimizer's state, as JSON and a flat table of tensors, and back."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from typing import Any

import torch
from torch import Tensor

from lorakit.errors import RunError

PLAIN = (bool, int, float, str, type(None))


def pack(value: Any, name: str, home: torch.device, tensors: MutableMapping[str, Tensor]) -> Any:
    """The value as JSON takes it; its tensors are put into `tensors` under `name` and what comes after.

    Tensors are copied to the CPU; one that was on the CPU while `home` is another device is marked to stay there.
    """
    if isinstance(value, Tensor):
        tensors[name] = value.detach().to("cpu", copy=True).contiguous()
        return {"tensor": name, "host": value.device.type == "cpu" and home.type != "cpu"}
    if isinstance(value, PLAIN):
        return value
    if isinstance(value, (list, tuple)):
        items = [pack(item, f"{name}.{place}", home, tensors) for place, item in enumerate(value)]
        return {"tuple" if isinstance(value, tuple) else "list": items}
    if isinstance(value, Mapping) and all(isinstance(key, (str, int)) for key in value):
        return {"table": [[key, pack(item, f"{name}.{key}", home, tensors)] for key, item in value.items()]}
    raise RunError(
        f"the optimizer's state cannot be saved: {name} is a {type(value).__name__}",
        why="a checkpoint holds tensors, numbers, text, and lists and tables of them; nothing is pickled",
        fix="This is for the optimizer's author to mend; choose another with --set optimizer.name=NAME.",
    )


def unpack(packed: Any, home: torch.device, tensors: Mapping[str, Tensor]) -> Any:
    """The value that `pack` took apart, its tensors on `home`; KeyError or ValueError where it is not whole."""
    if isinstance(packed, PLAIN):
        return packed
    if not isinstance(packed, dict):
        raise ValueError(f"a packed value is a {type(packed).__name__}")
    if "tensor" in packed:
        tensor = tensors[packed["tensor"]]
        return tensor if packed.get("host") else tensor.to(home)
    (kind, items), *more = packed.items()
    if more or kind not in ("tuple", "list", "table"):
        raise ValueError(f"a packed value is a '{kind}'")
    if kind == "table":
        return {key: unpack(item, home, tensors) for key, item in items}
    made = [unpack(item, home, tensors) for item in items]
    return tuple(made) if kind == "tuple" else made
