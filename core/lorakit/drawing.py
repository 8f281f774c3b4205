"""What pictures are drawn with: a LoRA file or a run's, and a plan of model and sampling for it. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lorakit import history, launched
from lorakit.checks import NO_PICTURES, TOY
from lorakit.config import Layer, Table
from lorakit.errors import ConfigError, ModelError, RunError
from lorakit.family import Family
from lorakit.lora_about import config
from lorakit.lora_facts import Facts
from lorakit.plan import Plan
from lorakit.single_file import header

KEPT: Mapping[str, tuple[str, ...]] = {
    "model": ("source", "config"),
    "scheduler": (),
    "quantization": (),
    "speed": ("offload",),
    "train": ("precision", "resolution", "reference_resolution"),
    "text_encoder": ("template", "reference_resolution"),
    "sampling": ("prompts", "references", "negative", "guidance", "steps", "shift", "width", "height", "seed"),
}
"""Settings of a run that its pictures depend on; all of a section where none are named."""

OF_VARIANTS = ("guidance", "steps", "shift", "negative", "references")
"""Sampling settings that another variant of the family has others of."""


def checkpoints(run: Path) -> dict[int, Path]:
    """The LoRA files of a run's checkpoints by update, that of its end included; RunError where there are none."""
    found = history.read(run).checkpoints()
    if not found:
        raise RunError(
            f"the run {run} has no checkpoint to draw with",
            fix="Train it further (`lorakit resume`), or name a LoRA file.",
        )
    return found


def latest(run: Path) -> Path:
    """The newest LoRA file of a run."""
    return list(checkpoints(run).values())[-1]


def run_of(file: Path) -> Path | None:
    """The folder of the run that a file lies in, as its result or in a checkpoint."""
    places = (file.absolute().parent, file.absolute().parent.parent.parent)
    return next((place for place in places if (place / history.PLAN).is_file()), None)


def family_of(run: Path) -> str:
    """The family of a run."""
    return history.plan_of(run).settings.family


def request(facts: Facts, asked: Sequence[Layer], *, run: Path | None = None) -> list[Layer]:
    """The layers of a plan that draws with the file: what was trained with, what the file needs, what is asked."""
    family = _certain(facts)
    told = history.plan_of(run) if run else None
    own = told.settings.model_dump(mode="json", exclude_none=True) if told else config(facts.metadata)
    if own.get("family") not in (None, family.name):
        own = {}
    if not run and isinstance(own.get("sampling"), dict):
        own["sampling"].pop("references", None)  # a file of somebody else names no pictures of this machine
    where = f"the plan of {run}" if run else f"the metadata of {facts.file}"
    variant = next((layer.table["variant"] for layer in reversed(asked) if "variant" in layer.table), None)
    table = _settings(own, family)
    if variant not in (None, table.get("variant")):
        table = _without_variant(table)
    below = Layer(table, where) if own else _foreign(facts, family, asked)
    more = [Layer({"output": str(run.parent)}, where)] if run else []
    return [below, *more, *_whole(asked), Layer(_needed(facts, family), str(facts.file)), *asked]


def checked(plan: Plan) -> Plan:
    """The plan, where it can be drawn; ConfigError where it cannot."""
    wrong = [one.message for one in plan.errors if one.message != NO_PICTURES]
    if wrong:
        raise ConfigError(wrong[0])
    if plan.settings.train.sharding == "sharded":
        raise ConfigError(
            "train.sharding = 'sharded' does not go with drawing",
            where="train.sharding",
            why="each process draws pictures of its own, with the whole base",
            fix="Leave it out; speed.offload lets blocks wait in host memory.",
        )
    if not plan.settings.sampling.prompts:
        raise ConfigError("nothing is to be drawn", why="no prompt is named", fix="Say --prompt.")
    return plan


def _whole(asked: Sequence[Layer]) -> list[Layer]:
    """That several processes hold the whole base each, whatever a plan of training would choose."""
    said = [layer.table["train"]["gpus"] for layer in asked if "gpus" in layer.table.get("train", {})]
    several = launched.count() or (said[-1] if said else 1)
    return [] if several == 1 else [Layer({"train": {"sharding": "replicated"}}, "drawing")]


def _certain(facts: Facts) -> Family:
    """The family of the file."""
    if facts.family is None:
        known = " or ".join(one.family.name for one in facts.names)
        raise ModelError(
            f"the family of {facts.file} is not certain",
            why=f"its layers are those of {known}" if known else "no installed family knows its layers",
            fix="Say which with --family." if known else "Look at them: `lorakit inspect`.",
        )
    return facts.family


def _settings(own: Mapping[str, Any], family: Family) -> Table:
    """What pictures depend on of a run's settings, as it lies in its plan or in the metadata of a file."""
    found: Table = {"preset": "none", "validation": {"every": 0}}
    found |= {"variant": own["variant"]} if own.get("variant") is not None else {}
    for section, names in KEPT.items():
        table = own.get(section)
        if isinstance(table, dict):
            kept = {name: value for name, value in table.items() if (name in names or not names) and value is not None}
            found[section] = kept
    variant = family.variants.get(str(found.get("variant", family.default_variant)))
    if variant and variant.guidance != "true":
        found.get("sampling", {}).pop("negative", None)  # which nothing reads
    return found


def _without_variant(table: Table) -> Table:
    """The same for another variant, whose model, template and guidance are its own."""
    model = {name: value for name, value in table.get("model", {}).items() if value == TOY}
    sampling = {name: value for name, value in table.get("sampling", {}).items() if name not in OF_VARIANTS}
    return {**table, "model": model, "sampling": sampling, "text_encoder": {}}


def _foreign(facts: Facts, family: Family, asked: Sequence[Layer]) -> Layer:
    """Where nothing tells the model: the variant that the metadata names, and the toy where the file is for the toy."""
    table: Table = {"validation": {"every": 0}}
    if facts.variants:
        table["variant"] = facts.variants[0]
    if not any("source" in layer.table.get("model", {}) for layer in asked) and fits_toy(facts, family):
        table |= {"model": {"source": TOY}, "preset": "toy"}
    return Layer(table, str(facts.file))


def fits_toy(facts: Facts, family: Family) -> bool:
    """Whether every layer of the denoiser in the file is of the size that the family's toy has there."""
    component = family.components[0]
    files = sorted((family.toy_folder / component).glob("*.safetensors")) if family.toy_folder else []
    if not files:
        return False
    shapes = {f"{component}.{name}": one.shape for file in files for name, one in header(file).items()}
    mine = [one for one in facts.layers if len(one.layers) == 1 and one.layers[0].startswith(f"{component}.")]
    return bool(mine) and all(shapes.get(f"{one.layers[0]}.weight") == (one.outputs, one.inputs) for one in mine)


def _needed(facts: Facts, family: Family) -> Table:
    """What the plan must know of the file: its largest rank, the layers it stands on, and whether text is changed."""
    main = family.components[0]
    kinds = dict.fromkeys(one for layer in facts.layers for one in layer.kinds if layer.component in (main, ""))
    rank = min(max(layer.rank for layer in facts.layers), 1024)
    text = any(layer.component != main for layer in facts.layers if layer.layers)
    return {
        "family": family.name,
        "lora": {"rank": rank, "alpha": float(rank), **({"targets": list(kinds)} if kinds else {})},
        **({"text_encoder": {"train": True}} if text else {}),
    }
