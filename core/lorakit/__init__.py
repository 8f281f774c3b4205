"""lorakit: a plugin-based LoRA trainer for diffusion models, with a registry of model families."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from lorakit.version import __version__

if TYPE_CHECKING:
    from lorakit.config import Layer
    from lorakit.control import Control
    from lorakit.errors import LorakitError
    from lorakit.events import Event
    from lorakit.family import Family, FlowShift, Recipe, Variant
    from lorakit.hooks import hookimpl
    from lorakit.kit import Kit
    from lorakit.plan import Plan
    from lorakit.problem import Problem
    from lorakit.registry import Part, Registry
    from lorakit.request import Request
    from lorakit.rules import Rule, never, only, prefer
    from lorakit.sections import Section
    from lorakit.trackers import Tracker

__all__ = [
    "Control",
    "Event",
    "Family",
    "FlowShift",
    "Kit",
    "Layer",
    "LorakitError",
    "Part",
    "Plan",
    "Problem",
    "Recipe",
    "Registry",
    "Request",
    "Rule",
    "Section",
    "Tracker",
    "Variant",
    "__version__",
    "hookimpl",
    "never",
    "only",
    "prefer",
]

# Each name is fetched when it is first asked for, so that `lorakit --help` and a plugin that only registers a noun
# do not wait for the configuration models.
_HOMES = {
    "Control": "control",
    "Event": "events",
    "Family": "family",
    "FlowShift": "family",
    "Kit": "kit",
    "Layer": "config",
    "LorakitError": "errors",
    "Part": "registry",
    "Plan": "plan",
    "Problem": "problem",
    "Recipe": "family",
    "Registry": "registry",
    "Request": "request",
    "Rule": "rules",
    "Section": "sections",
    "Tracker": "trackers",
    "Variant": "family",
    "hookimpl": "hooks",
    "never": "rules",
    "only": "rules",
    "prefer": "rules",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'lorakit' has no attribute '{name}'")
    return getattr(importlib.import_module(f"lorakit.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
