"""What a LoRA file says of its making: its trigger and its training, whoever wrote it. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lorakit import jsontext
from lorakit.lora_facts import Facts, alphas, kinds, ranks

TRAINING = {
    "made by": ("lorakit.version", "ss_training_software", "software", "modelspec.implementation"),
    "model": ("ss_sd_model_name", "ss_base_model", "base_model"),
    "objective": ("modelspec.prediction_type",),
    "resolution": ("modelspec.resolution", "ss_resolution"),
    "pictures": ("ss_num_train_images",),
    "updates": ("ss_steps",),
    "of": ("ss_max_train_steps",),
    "epochs": ("ss_num_epochs", "ss_epoch"),
    "optimizer": ("ss_optimizer",),
    "learning rate": ("ss_learning_rate", "ss_unet_lr"),
    "schedule": ("ss_lr_scheduler",),
    "batch size": ("ss_total_batch_size", "ss_batch_size_per_device"),
    "accumulation": ("ss_gradient_accumulation_steps",),
    "network": ("ss_network_module",),
    "seed": ("ss_seed",),
    "date": ("modelspec.date", "ss_training_started_at"),
}
"""What is worth knowing, and the metadata keys that tell it, the first one that is there counting."""
EXPORTED = "lorakit.exported"
"""Where a file that was written anew says what was done, as a list."""
SHOWN = 200
"""Characters of a value that are shown."""


def training(metadata: Mapping[str, str]) -> dict[str, str]:
    """What the metadata says of the training, shortened to what a person reads."""
    found = {}
    for name, keys in TRAINING.items():
        value = next((metadata[key] for key in keys if metadata.get(key, "None") not in ("", "None")), None)
        if value is not None:
            found[name] = value if len(value) <= SHOWN else f"{value[:SHOWN]}…"
    if found.get("of") == found.get("updates"):
        found.pop("of", None)
    if "lorakit.version" in metadata:
        found["made by"] = f"lorakit {metadata['lorakit.version']}"
    return found


def trigger(metadata: Mapping[str, str]) -> tuple[str, str]:
    """(the words that call it, where they are told); nothing where they are not."""
    for key in ("modelspec.trigger_phrase", "ss_trigger_words", "trigger_word", "activation text"):
        if metadata.get(key):
            return metadata[key], key
    counts: dict[str, int] = {}
    for tags in _table(metadata, "ss_tag_frequency").values():
        for tag, number in tags.items() if isinstance(tags, dict) else ():
            counts[str(tag).strip()] = counts.get(str(tag).strip(), 0) + (number if isinstance(number, int) else 0)
    if not counts:
        return "", ""
    often = max(counts, key=lambda tag: counts[tag])
    return often, f"the commonest of {len(counts)} tags in ss_tag_frequency, {counts[often]} times"


def config(metadata: Mapping[str, str]) -> dict[str, Any]:
    """lorakit's own settings of the run that made it; nothing where it says none."""
    return _table(metadata, "lorakit.config")


def table(facts: Facts, norms: Mapping[str, float] | None) -> dict[str, Any]:
    """Everything as one JSON object; `norms` are of B A by the layer's name in the file, where they were measured."""
    words, where = trigger(facts.metadata)
    return {
        "file": str(facts.file),
        "bytes": facts.size,
        "families": [one.family.name for one in facts.names],
        "variants": list(facts.variants),
        "layout": facts.layout,
        "dtypes": dict(facts.dtypes),
        "layers": len(facts.layers),
        "ranks": {str(rank): number for rank, number in ranks(facts).items()},
        "alphas": {str(alpha): number for alpha, number in alphas(facts).items()},
        "kinds": {
            name: {
                "layers": len(found),
                **({} if norms is None else {"norm": _whole(norms, [one.name for one in found])}),
            }
            for name, found in sorted(kinds(facts).items())
        },
        "unknown": facts.unknown,
        "others": dict(facts.others),
        "norms": None if norms is None else dict(norms),
        "trigger": {"words": words, "told_by": where},
        "training": training(facts.metadata),
        "config": config(facts.metadata) or None,
        "exported": _list(facts.metadata, EXPORTED),
        "metadata": dict(facts.metadata),
        "notes": list(facts.notes),
    }


def _whole(norms: Mapping[str, float], names: list[str]) -> float:
    """The norm of several layers together."""
    return float(sum(norms[name] ** 2 for name in names) ** 0.5)


def _table(metadata: Mapping[str, str], key: str) -> dict[str, Any]:
    """A table that stands in the metadata as JSON; nothing where it is none."""
    try:
        return jsontext.table(metadata.get(key, "{}"))
    except ValueError:
        return {}


def _list(metadata: Mapping[str, str], key: str) -> list[Any]:
    """A list that stands in the metadata as JSON; nothing where it is none."""
    try:
        found = jsontext.parse(metadata.get(key, "[]"))
    except ValueError:
        return []
    return found if isinstance(found, list) else []
