"""The picture processor of the edit models loads without torchvision."""

import importlib.util
import shutil

import pytest
import torch
from PIL import Image

from lorakit.engine.parts import Source
from lorakit.errors import ModelError
from lorakit_qwen.family import TOY
from lorakit_qwen.pictures import load_pictures
from tests.plugins.processor import load_processor


def test_a_picture_becomes_patches_and_as_many_tokens():
    assert importlib.util.find_spec("torchvision") is None
    source = Source(TOY, "the toy", torch.float32)
    picture = Image.new("RGB", (112, 84), (200, 30, 30))
    seen = load_pictures(source)(images=[picture], return_tensors="pt")
    frames, high, wide = seen["image_grid_thw"][0].tolist()
    assert (frames, high, wide) == (1, 84 // 14, 112 // 14)
    assert seen["pixel_values"].shape == (high * wide, 3 * 2 * 14 * 14)
    whole = load_processor(source)
    text = ["<|vision_start|><|image_pad|><|vision_end|>a"]
    tokens = whole(text=text, images=[picture], return_tensors="pt")["input_ids"]
    assert int((tokens == whole.image_token_id).sum()) == high * wide // load_pictures(source).merge_size ** 2


def test_a_model_without_one_is_refused(tmp_path):
    folder = shutil.copytree(TOY, tmp_path / "model")
    shutil.rmtree(folder / "processor", ignore_errors=True)
    with pytest.raises(ModelError, match="lacks a picture processor"):
        load_pictures(Source(folder, "it", torch.float32))
