"""The Qwen2-VL processor without torchvision, which transformers 5 asks for even where every picture is a PIL image."""

from __future__ import annotations

import json
from typing import Any

from transformers import Qwen2Tokenizer, Qwen2VLImageProcessorPil, Qwen2VLProcessor
from transformers.processing_utils import ProcessorMixin

from lorakit.engine.parts import Source
from lorakit.errors import ModelError

KEPT = (
    "min_pixels", "max_pixels", "size", "patch_size", "temporal_patch_size", "merge_size", "image_mean", "image_std",
    "resample", "rescale_factor",
)  # fmt: skip
"""Settings of a published preprocessor_config.json that the PIL image processor understands."""


class PictureProcessor(Qwen2VLProcessor):  # type: ignore[misc]
    """Pictures and text, and no videos: the part of Qwen2VLProcessor that needs torchvision is left out."""

    def __init__(self, image_processor: Any = None, tokenizer: Any = None, chat_template: str | None = None) -> None:
        self.image_token, self.video_token = "<|image_pad|>", "<|video_pad|>"
        self.image_token_id = tokenizer.convert_tokens_to_ids(self.image_token)
        self.video_token_id = tokenizer.convert_tokens_to_ids(self.video_token)
        ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)


def load_processor(source: Source) -> PictureProcessor:
    """The model's processor, from its `processor` folder."""
    folder = source.folder / "processor"
    for name in ("preprocessor_config.json", "processor_config.json"):
        if (folder / name).is_file():
            written = json.loads((folder / name).read_text(encoding="utf-8"))
            settings = written.get("image_processor", written)
            pictures = Qwen2VLImageProcessorPil(**{key: settings[key] for key in KEPT if key in settings})
            return PictureProcessor(pictures, source.load(Qwen2Tokenizer, "processor"))
    raise ModelError(f"the model {source.name} lacks a picture processor", fix=f"It should be in {folder}.")
