"""lorakit: a plugin-based LoRA trainer for diffusion models, with a registry of model families."""

from lorakit.version import __version__  # isort: skip  (the rest of the package asks for it)

from lorakit.config import Layer
from lorakit.control import Control
from lorakit.errors import LorakitError
from lorakit.events import Event
from lorakit.family import Family, FlowShift, Variant
from lorakit.hooks import hookimpl
from lorakit.kit import Kit
from lorakit.plan import Plan, Problem
from lorakit.registry import Part, Registry
from lorakit.request import Request
from lorakit.rules import Rule, never, only, prefer

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
    "Registry",
    "Request",
    "Rule",
    "Variant",
    "__version__",
    "hookimpl",
    "never",
    "only",
    "prefer",
]
