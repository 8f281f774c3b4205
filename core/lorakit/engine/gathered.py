"""Modules that may be sharded among processes, seen as what they are, without torch's engine for that."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def whole(module: nn.Module) -> Iterator[None]:
    """For a while, a block's own weights all here; where they are sharded, all processes do so at once."""
    sharded: Any = module if hasattr(module, "unshard") else None
    if sharded:
        sharded.unshard()
    try:
        yield
    finally:
        if sharded:
            sharded.reshard()


def kind_of(module: nn.Module) -> type[nn.Module]:
    """The class that a module was made of; one that is sharded has torch's own before it."""
    return next(one for one in type(module).__mro__ if not one.__module__.startswith("torch.distributed."))
