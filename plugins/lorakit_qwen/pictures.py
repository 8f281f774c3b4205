"""The picture half of the Qwen2-VL processor; the whole one asks for torchvision, even where pictures are PIL's."""

from __future__ import annotations

import json

from transformers import Qwen2VLImageProcessorPil

from lorakit.engine.parts import Source
from lorakit.errors import ModelError

KEPT = (
    "min_pixels", "max_pixels", "size", "patch_size", "temporal_patch_size", "merge_size", "image_mean", "image_std",
    "resample", "rescale_factor",
)  # fmt: skip
"""Settings of a published preprocessor_config.json that the PIL image processor understands."""


def load_pictures(source: Source) -> Qwen2VLImageProcessorPil:
    """The model's picture processor, from its `processor` folder."""
    folder = source.folder / "processor"
    for name in ("preprocessor_config.json", "processor_config.json"):
        if (folder / name).is_file():
            written = json.loads((folder / name).read_text(encoding="utf-8"))
            settings = written.get("image_processor", written)
            return Qwen2VLImageProcessorPil(**{key: settings[key] for key in KEPT if key in settings})
    raise ModelError(f"the model {source.name} lacks a picture processor", fix=f"It should be in {folder}.")
