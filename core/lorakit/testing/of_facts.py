"""Promises about what a family says: facts, rules, and the toy that it writes."""

from __future__ import annotations

import itertools
import json

from lorakit import Kit, Request, hookimpl, hooks
from lorakit.engine.layouts import NAMINGS
from lorakit.estimate.model import configs
from lorakit.family import Family
from lorakit.plugins import CORE, call, manager
from lorakit.testing.bench import Bench
from lorakit.testing.promise import require


def facts(bench: Bench) -> str:
    """Every fact is there, and no two are at odds."""
    family, shelves = bench.family, bench.kit.shelves
    require(shelves.families.get(family.name) is family, f"the Kit's family '{family.name}' is another one")
    require(family.name.isidentifier() and family.name.islower(), f"'{family.name}' is no lower-case word.")
    require(family.layout in NAMINGS, f"layout = '{family.layout}' is none of {', '.join(NAMINGS)}.")
    require(family.side_multiple > 0 and family.patch > 0, "side_multiple and patch must be over 0.")
    require(family.toy_resolution >= family.side_multiple, "toy_resolution is less than side_multiple.")
    _named(family, "lora_targets", family.lora_targets)
    for name, parts in (("text_components", family.text_components), ("image_components", family.image_components)):
        _named(family, name, parts)
        strange = set(parts) - set(family.components)
        require(not strange, f"{name} has {sorted(strange)}, which components lacks.")
    require(set(family.trainable_text) <= set(family.text_components), "trainable_text is not in text_components.")
    require(bool(family.trainable_text) == bool(family.text_targets), "trainable_text and text_targets go together.")
    known = set(shelves.quantizers)
    spoken = {
        *family.spared,
        *family.needs_recovery,
        *(one for some in family.spared.values() for one in some.values()),
    }
    require(spoken <= known, f"no quantizer is called {sorted(spoken - known)} (spared, needs_recovery).")
    for name, variant in family.variants.items():
        require(variant.source.count("/") == 1, f"the source of {name}, '{variant.source}', is no hub repository.")
        require(variant.templates, f"{name} has no templates.")
        require(variant.architecture, f"{name} has no architecture.")
    return f"{len(family.variants)} variants, {len(family.lora_targets)} targets" + _weighed(bench)


def _named(family: Family, name: str, values: tuple[str, ...]) -> None:
    listed = isinstance(values, tuple) and bool(values) and all(isinstance(one, str) and one for one in values)
    require(listed, f"{name} of {family.name} is no list of names, and is {values!r}.")


def _weighed(bench: Bench) -> str:
    """The size that estimates reckon with is that of the toy, by its configuration."""
    if bench.about.size is None:
        return ", no size"
    size = bench.about.size(configs(bench.toy))
    counted = sum(one.numel() for one in bench.denoiser.module.parameters())
    require(size.parameters == counted, f"size says {size.parameters} parameters, and the toy has {counted}.")
    return f", {counted} parameters as told"


def toy(bench: Bench) -> str:
    """The toy folder holds every component, and the reference pipeline takes it whole."""
    missing = [name for name in (*bench.family.components, *bench.about.components) if not (bench.toy / name).is_dir()]
    require(not missing, f"the toy lacks {', '.join(missing)}.")
    named = json.loads((bench.toy / "model_index.json").read_text(encoding="utf-8"))["_class_name"]
    require(
        named == bench.about.pipeline, f"its model_index.json names {named}, and the variant {bench.about.pipeline}."
    )
    held = bench.pipeline.components
    empty = [name for name in bench.family.components if held.get(name) is None]
    require(not empty, f"the pipeline has no {', '.join(empty)}.")
    return f"{named} with {len([one for one in held.values() if one is not None])} components"


def rules(bench: Bench) -> str:
    """Rules answer alike, whoever was asked before; plans are alike, in whatever order plugins were registered."""
    first = _heard(bench, hooks.RULE_HOOKS)
    for order in itertools.permutations(hooks.RULE_HOOKS):
        require(_heard(bench, order) == first, f"rules answer otherwise when asked in the order {', '.join(order)}.")
    plan = bench.plan()
    require(bench.plan() == plan, "the same request gives another plan the second time.")
    others = {plugin.name: plugin.module for plugin in bench.kit.plugins if plugin.name != CORE}
    for ordered in (others, dict(reversed(others.items()))):
        kit = Kit(discover=False, plugins={"silent": _Silent(), **ordered})
        other = kit.plan(bench.request())
        same = (other.choices, other.problems) == (plan.choices, plan.problems)
        require(same, "another order of plugins, or one more that says nothing, gives another plan.")
    return f"{sum(len(answers) for answers in first.values())} rules"


class _Silent:
    """A plugin that is asked and says nothing."""

    @hookimpl
    def scheduler_rules(self, request: Request) -> None:
        return None


def _heard(bench: Bench, order: tuple[str, ...]) -> dict[str, tuple[object, ...]]:
    """What the family answers to each rule hook, asked in this order."""
    request = bench.kit.request({"family": bench.family.name, "variant": bench.variant, "preset": "none"})
    pm = manager(bench.kit.plugins, bench.family)
    found: dict[str, tuple[object, ...]] = {}
    for hook in order:
        asked = {"request": request, "family": bench.family, "shelves": bench.kit.shelves}
        answers = (answer.value or () for answer in call(pm, hook, **asked))
        found[hook] = tuple(sorted((rule for answer in answers for rule in answer), key=repr))
    return dict(sorted(found.items()))
