"""The quantized base on disk: made once, read again, made anew where it is broken or its inputs are others."""

from __future__ import annotations

import pytest
import torch

from lorakit.engine.cache import Cache
from lorakit.engine.source import cache_folder
from lorakit.engine.weights import Weights
from tests.engine.quantized import answers, context_of, loaded, make_plan, write_scenes


@pytest.fixture
def pictures(tmp_path):
    return write_scenes(tmp_path / "pictures", 2, 1)


@pytest.fixture
def plan(tmp_path, pictures):
    def make(name, **more):
        quantization = {"name": name, "uncorrected": True, "cache": True, **more.pop("quantization", {})}
        return make_plan(tmp_path / "runs", pictures, quantization=quantization, **more)

    return make


@pytest.fixture
def reads(monkeypatch):
    """Names of tensors that are read from the model's own files."""
    seen = []
    real = Weights.read

    def read(self, names):
        names = list(names)
        seen.extend(names)
        return real(self, names)

    monkeypatch.setattr(Weights, "read", read)
    return seen


def blocks_read(reads):
    found = [name for name in reads if name.startswith("transformer_blocks.")]
    reads.clear()
    return found


@pytest.mark.parametrize("name", ["int8", "int4", "int2"])
def test_a_second_run_opens_no_block_of_the_original(plan, reads, name):
    first = loaded(plan(name))[0]
    assert blocks_read(reads)
    second = loaded(plan(name))[0]
    assert blocks_read(reads) == []
    assert torch.equal(answers(first), answers(second))


def test_what_is_broken_or_not_whole_is_made_anew(plan, reads):
    made = plan("int8")
    first = loaded(made)[0]
    blocks_read(reads)
    files = sorted(cache_folder(made).rglob("??/*.safetensors"))
    assert len(files) == 4
    files[0].write_bytes(files[0].read_bytes()[:1000])
    cache = Cache(cache_folder(made))
    tensors = cache.load(files[1].stem)
    tensors.popitem()
    cache.store(files[1].stem, tensors)
    assert torch.equal(answers(loaded(made)[0]), answers(first))
    assert {name.split(".")[1] for name in blocks_read(reads)} != {"0", "1", "2", "3"}
    loaded(made)
    assert blocks_read(reads) == []


def test_another_quantizer_or_precision_is_another_base(plan, reads):
    loaded(plan("int8"))
    for other in (plan("int4"), plan("int8", train={"precision": "bf16"})):
        blocks_read(reads)
        loaded(other)
        assert blocks_read(reads)


def test_nothing_is_kept_unless_asked_or_in_full_precision(plan):
    for made in (plan("int8", quantization={"cache": False}), plan("none")):
        loaded(made)
        assert not list(cache_folder(made).rglob("??/*.safetensors"))


def test_a_model_without_weights_gets_them_all(plan):
    made = plan("int2")
    loaded(made)
    denoiser = loaded(made)[0]
    assert not any(one.is_meta for one in [*denoiser.module.parameters(), *denoiser.module.buffers()])
    assert context_of(made).source.hollow().empty
