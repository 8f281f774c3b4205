"""The ComfyUI workflow that draws with a run's file as the run drew its previews.

A family brings templates as data: workflows in ComfyUI's API format whose inputs may hold placeholders such as
`{prompt}`. Nothing here knows a node or a model file; what a template says is what is written.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lorakit.captions import with_trigger
from lorakit.errors import PluginError
from lorakit.family import Family, FlowShift
from lorakit.plan import Plan
from lorakit.words import count

Value = str | int | float
Nodes = dict[str, Any]
PLACEHOLDER = re.compile(r"\{(\w+)\}")


def file_name(name: str) -> str:
    """What the workflow of the run called `name` is called, beside its LoRA."""
    return f"{name}.workflow.api.json"


def written(plan: Plan, family: Family) -> str | None:
    """The workflow as JSON text, or None where the family has no template for the plan.

    It draws the first prompt that holds the trigger, with the references and the seed of that preview.
    """
    path = template(plan, family)
    if path is None:
        return None
    nodes = fill(_read(path), values(plan, family), plan.settings.save.workflow, path)
    return json.dumps(nodes, indent=1, ensure_ascii=False) + "\n"


def save(plan: Plan, family: Family, folder: Path) -> str:
    """Write the workflow into the run's folder, if there is one for the plan; its path, or nothing."""
    text = written(plan, family)
    if text is None:
        return ""
    path = folder / file_name(plan.settings.name)
    aside = path.with_name(f".{path.name}")
    aside.write_text(text, encoding="utf-8")
    aside.replace(path)
    return str(path)


def template(plan: Plan, family: Family) -> Path | None:
    """The file that serves the plan: `<variant>.references.json` where the prompt comes with reference pictures, else
    `<variant>.<prompt template>.json`, or simply `<variant>.json`.
    """
    if family.workflows is None:
        return None
    settings = plan.settings
    kind = "references" if _references(plan) else settings.text_encoder.template
    names = (f"{settings.variant}.{kind}.json", f"{settings.variant}.json")
    return next((path for path in map(family.workflows.joinpath, names) if path.is_file()), None)


def values(plan: Plan, family: Family) -> dict[str, Value | None]:
    """What placeholders stand for; None for a reference picture that is not there."""
    settings, sampling, number = plan.settings, plan.settings.sampling, _number(plan)
    prompt = sampling.prompts[number] if sampling.prompts else ""
    found: dict[str, Value | None] = {
        "name": settings.name,
        "lora": f"{settings.name}.safetensors",
        "prompt": with_trigger(prompt, settings.trigger),
        "negative": sampling.negative,
        "seed": sampling.seed + number,
        "steps": sampling.steps,
        "guidance": sampling.guidance,
        "width": sampling.width,
        "height": sampling.height,
    }
    variant = family.variants[settings.variant]
    if variant.flow_shift is not None:
        found |= _shift(variant.flow_shift, sampling.shift, sampling.width * sampling.height // family.side_multiple**2)
    pictures = [Path(one).name for one in _references(plan)]
    found |= dict.fromkeys((f"reference{place}" for place in range(1, variant.references + 1)), None)
    return found | {f"reference{place}": picture for place, picture in enumerate(pictures, 1)}


def _shift(formula: FlowShift, fixed: float | None, tokens: int) -> dict[str, Value | None]:
    """The shift of the noise levels as a factor, and as a line over image tokens, which is level where it is `fixed`.

    The side of a token is taken to be the side multiple.
    """
    ends = (formula.base_shift, formula.max_shift) if fixed is None else (math.log(fixed),) * 2
    factor = round(formula.at(tokens), 2) if fixed is None else fixed
    return {"shift": factor, "base_shift": round(ends[0], 4), "max_shift": round(ends[1], 4)}


def fill(nodes: Nodes, given: Mapping[str, Value | None], own: Mapping[str, Value], path: Path) -> Nodes:
    """The template's nodes with every placeholder filled, and with the inputs that `own` names set to its values.

    An input that is a placeholder and nothing else gets the value itself, a number as a number. A node with a
    placeholder for what is not there is left out, and so is every input that it was linked to.
    """
    unknown = {one for node in nodes.values() for text in _texts(node) for one in _names(text)} - given.keys()
    if unknown:
        raise PluginError(
            f"the workflow template {path} holds the placeholder {{{min(unknown)}}}",
            fix=f"Known are {', '.join(sorted(given))}.",
        )
    missing = {name for name, value in given.items() if value is None}
    absent = {
        number for number, node in nodes.items() if any(missing.intersection(_names(text)) for text in _texts(node))
    }
    return {
        number: {
            **node,
            "inputs": {
                name: own[name] if name in own and _is_fixed(value) else _filled(value, given)
                for name, value in node["inputs"].items()
                if not (isinstance(value, list) and value[0] in absent)
            },
        }
        for number, node in nodes.items()
        if number not in absent
    }


def misfit(plan: Plan, family: Family) -> str | None:
    """What is wrong with the inputs that save.workflow names, in words."""
    own, path = plan.settings.save.workflow, template(plan, family)
    if not own:
        return None
    if path is None:
        return f"save.workflow has no effect: {family.title} brings no ComfyUI workflow for this plan"
    fixed = {name for node in _read(path).values() for name, value in node["inputs"].items() if _is_fixed(value)}
    unknown = sorted(own.keys() - fixed)
    if not unknown:
        return None
    return (
        f"save.workflow names {count(len(unknown), 'input')} that the workflow does not have or that the run itself "
        f"decides: {', '.join(unknown)}. Known are {', '.join(sorted(fixed))}"
    )


def _number(plan: Plan) -> int:
    """Which prompt is drawn."""
    trigger = plan.settings.trigger
    holding = (n for n, prompt in enumerate(plan.settings.sampling.prompts) if with_trigger(prompt, trigger) == prompt)
    return next(holding, 0)


def _references(plan: Plan) -> tuple[str, ...]:
    given = plan.settings.sampling.references
    return given[_number(plan)] if given else ()


def _read(path: Path) -> Nodes:
    try:
        nodes: Nodes = json.loads(path.read_text(encoding="utf-8"))
        if not all(isinstance(node["inputs"], dict) and node["class_type"] for node in nodes.values()):
            raise TypeError("a node has no class_type or no inputs")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise PluginError(
            f"the workflow template {path} is not a workflow in ComfyUI's API format", why=str(error)
        ) from error
    return nodes


def _texts(node: Mapping[str, Any]) -> list[str]:
    return [value for value in node["inputs"].values() if isinstance(value, str)]


def _names(text: str) -> list[str]:
    return PLACEHOLDER.findall(text)


def _is_fixed(value: object) -> bool:
    """Whether an input is neither a link nor decided by the run."""
    return not isinstance(value, list) and not (isinstance(value, str) and _names(value))


def _filled(value: Any, given: Mapping[str, Value | None]) -> Any:
    if not isinstance(value, str):
        return value
    whole = PLACEHOLDER.fullmatch(value)
    return given[whole[1]] if whole else PLACEHOLDER.sub(lambda one: str(given[one[1]]), value)
