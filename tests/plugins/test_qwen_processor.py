"""The picture processor of the edit models loads without torchvision."""

import importlib.util

import torch
from PIL import Image

from lorakit.engine.parts import Source
from lorakit_qwen.family import TOY
from lorakit_qwen.processor import load_processor


def processor():
    return load_processor(Source(TOY, "the toy", torch.float32))


def test_text_is_tokenized_as_by_the_tokenizer():
    made = processor()
    assert importlib.util.find_spec("torchvision") is None
    texts = ["a red circle", "a blue star on the left"]
    tokens = made(text=texts, padding=True, truncation=True, max_length=64, return_tensors="pt")
    alone = made.tokenizer(texts, padding=True, return_tensors="pt")
    assert torch.equal(tokens["input_ids"], alone["input_ids"])
    assert torch.equal(tokens["attention_mask"], alone["attention_mask"])


def test_a_picture_becomes_patches_and_as_many_tokens():
    made = processor()
    picture = Image.new("RGB", (112, 84), (200, 30, 30))
    found = made(text=["<|vision_start|><|image_pad|><|vision_end|>a"], images=[picture], return_tensors="pt")
    frames, high, wide = found["image_grid_thw"][0].tolist()
    assert (frames, high, wide) == (1, 84 // 14, 112 // 14)
    assert found["pixel_values"].shape == (high * wide, 3 * 2 * 14 * 14)
    assert int((found["input_ids"] == made.image_token_id).sum()) == high * wide // 4
