"""What plugin authors need to try things on a CPU in seconds: a family's promises, and a little world with a judge."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lorakit.testing.checking import PROMISES, Kept, check_family, family_promises
    from lorakit.testing.promise import Promise, PromiseError

__all__ = ["PROMISES", "Kept", "Promise", "PromiseError", "check_family", "family_promises"]

# fetched when asked for: the little world needs no torch
_HOMES = {
    "PROMISES": "checking",
    "Kept": "checking",
    "Promise": "promise",
    "PromiseError": "promise",
    "check_family": "checking",
    "family_promises": "checking",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'lorakit.testing' has no attribute '{name}'")
    return getattr(importlib.import_module(f"lorakit.testing.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
