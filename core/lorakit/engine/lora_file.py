"""The exported file: tensors in a layout that diffusers and ComfyUI load, and metadata that other tools read."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import safetensors.torch
from torch import Tensor

from lorakit.dataset import Dataset
from lorakit.engine import layouts
from lorakit.engine.adapter import Adapter
from lorakit.engine.source import DTYPES
from lorakit.family import Family
from lorakit.plan import Plan
from lorakit.secret import redacted

SAMPLING = ("recipe", "guidance", "steps", "shift")
"""Settings of previews with which the file is drawn as it was shown."""

PLACES: Any = {
    "output": True,
    "plugin": True,
    "data": {"__all__": {"folder", "list", "references"}},
    "sampling": {"references"},
}
"""Settings that are paths of one machine, or may be where a plugin says what they mean: nobody else's business."""


def encode(plan: Plan, family: Family, adapter: Adapter, dataset: Dataset, update: int) -> bytes:
    """The whole file, header and all."""
    held = layouts.tensors(adapter, family, DTYPES[plan.settings.save.dtype])
    return sealed(held, metadata(plan, family, dataset, update))


def sealed(held: Mapping[str, Tensor], about: Mapping[str, str]) -> bytes:
    """The file of these tensors with this metadata, without secrets and with the hashes of its content."""
    about = {name: redacted(value) for name, value in about.items()}
    if about:
        body = safetensors.torch.save(dict(held))
        digest = hashlib.sha256(_tensor_bytes(body)).hexdigest()
        about |= {"modelspec.hash_sha256": f"0x{digest}", "sshs_model_hash": digest}
    return safetensors.torch.save(dict(held), about or None)


def metadata(plan: Plan, family: Family, dataset: Dataset, update: int) -> dict[str, str]:
    """What the file says of itself, as `save.metadata` asks; every value is text.

    Keys are those of the ModelSpec standard 1.0.1 and of kohya's sd-scripts, which UIs and managers read.
    """
    if plan.settings.save.metadata == "none":
        return {}
    settings, variant = plan.settings, family.variants[plan.settings.variant]
    about = {
        "format": "pt",
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": variant.architecture,
        "modelspec.implementation": "diffusers",
        "modelspec.title": settings.name,
        "modelspec.resolution": f"{settings.train.resolution}x{settings.train.resolution}",
        "modelspec.date": datetime.now(UTC).isoformat(timespec="seconds"),
        "modelspec.prediction_type": settings.scheduler.name,
        "ss_base_model_version": family.base_model_version,
        "ss_output_name": settings.name,
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(settings.lora.rank),
        "ss_network_alpha": str(settings.lora.rank),  # the scale is folded in
        "ss_network_args": "{}",
        "ss_v2": "False",
        "lorakit.version": plan.lorakit,
        "lorakit.template": settings.text_encoder.template,
        "lorakit.sampling": json.dumps(settings.sampling.model_dump(include=set(SAMPLING))),
    }
    if settings.trigger:
        about |= {"modelspec.trigger_phrase": settings.trigger, "ss_trigger_words": settings.trigger}
    return about | _full(plan, dataset, update) if settings.save.metadata == "full" else about


def _full(plan: Plan, dataset: Dataset, update: int) -> dict[str, str]:
    settings = plan.settings
    folders: dict[str, dict[str, int]] = {}
    tags: dict[str, Counter[str]] = {}
    for sample in dataset.samples:
        folder = folders.setdefault(sample.folder, {"n_repeats": sample.repeats, "img_count": 0})
        folder["img_count"] += 1
        tags.setdefault(sample.folder, Counter()).update(_tags(sample.caption))
    shown = settings.model_dump(mode="json", exclude=PLACES)
    return {
        "ss_sd_model_name": settings.model.source,
        "ss_learning_rate": str(settings.optimizer.learning_rate),
        "ss_optimizer": settings.optimizer.name,
        "ss_seed": str(settings.seed),
        "ss_steps": str(update),
        "ss_max_train_steps": str(settings.train.updates),
        "ss_num_epochs": str(round(settings.train.epochs, 3)),
        "ss_num_train_images": str(dataset.passes),
        "ss_resolution": f"({settings.train.resolution}, {settings.train.resolution})",
        "ss_dataset_dirs": json.dumps(folders),
        "ss_tag_frequency": json.dumps({name: dict(counts.most_common()) for name, counts in tags.items()}),
        "lorakit.config": json.dumps(shown),
    }


def _tags(caption: str) -> list[str]:
    return [tag for tag in (part.strip() for part in re.split(r"[,\n]", caption)) if tag]


def _tensor_bytes(file: bytes) -> bytes:
    """Everything after the header: the bytes that Civitai's AutoV3 hash is of."""
    return file[8 + int.from_bytes(file[:8], "little") :]
