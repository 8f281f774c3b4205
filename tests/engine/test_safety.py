"""Files that somebody else wrote are refused in bounded memory and time, and lead nowhere else."""

from __future__ import annotations

import contextlib
import json
import resource
import struct
import time

import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError

from lorakit.engine import checkpoint, correction
from lorakit.engine.cache import Cache, FileHashes
from lorakit.engine.headers import opened
from lorakit.engine.run_folder import read_plan
from lorakit.engine.weights import Weights
from lorakit.errors import ModelError, RunError
from lorakit.single_file import LONGEST
from tests.engine.kills import made


def packed(header: object, body: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + body


def entry(shape, start, end, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


NAME = "transformer.x.lora_A.weight"
HOSTILE = {
    "no file": b"",
    "a header longer than the file": packed({}, length=2**63),
    "a huge header": packed(b" " * (LONGEST + 1)),
    "a metadata bomb": packed({"__metadata__": {str(number): "x" * 1000 for number in range(20_000)}}),
    "huge shapes": packed({NAME: entry([2**40, 2**40], 0, 4)}, b"0000"),
    "a shape whose size overflows": packed({NAME: entry([2**33, 2**31], 0, 0)}),
    "offsets beyond the file": packed({NAME: entry([1000], 0, 4000)}, b"0000"),
    "offsets that overlap": packed({NAME: entry([1], 0, 4), "y": entry([1], 0, 4)}, b"0000"),
    "negative offsets": packed({NAME: entry([1], -4, 0)}, b"0000"),
    "deep nesting": packed(b'{"a":' * 100_000 + b"1" + b"}" * 100_000),
    "no table": packed([1, 2]),
    "a pickle": b"\x80\x04\x95" + b"\x00" * 100,
    "not UTF-8": packed(b'{"\xff\xfe": 1}'),
}


@pytest.fixture(params=HOSTILE.values(), ids=HOSTILE.keys())
def hostile(request, tmp_path):
    file = tmp_path / "diffusion_pytorch_model.safetensors"
    file.write_bytes(request.param)
    return file


def test_hostile_files_are_refused_in_bounded_memory_and_time(hostile):
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    with pytest.raises(SafetensorError):
        opened(hostile)
    with pytest.raises(ModelError, match="recovery adapter"):
        correction.read(hostile)
    with pytest.raises(ModelError, match="cannot be loaded"):
        Weights(hostile.parent, "transformer")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kilobytes
    assert time.process_time() - began < 5


def test_a_header_that_hides_a_cache_entry_or_a_state_is_no_value(hostile, tmp_path):
    cache = Cache(tmp_path / "cache")
    cache.store("aa", {"x": torch.ones(2)})
    (file,) = (tmp_path / "cache").rglob("aa.safetensors")
    file.write_bytes(hostile.read_bytes())
    assert "aa" not in Cache(tmp_path / "cache")
    checkpoint.save(tmp_path / "run", made(1), "x.safetensors", b"")
    (checkpoint.folder_of(tmp_path / "run", 1) / checkpoint.STATE).write_bytes(hostile.read_bytes())
    with pytest.raises(RunError, match="none of the checkpoints"):
        checkpoint.newest(tmp_path / "run")


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_bytes_of_a_recovery_adapter_end_in_words(tmp_path, data):
    good = safetensors.torch.save({NAME: torch.ones(2, 4), NAME.replace("_A", "_B"): torch.ones(4, 2)})
    place = data.draw(st.integers(0, len(good)))
    bad = good[:place] + data.draw(st.binary(max_size=40)) + good[data.draw(st.integers(place, len(good))) :]
    file = tmp_path / "adapter.safetensors"
    file.write_bytes(bad)
    with contextlib.suppress(ModelError):
        assert correction.read(file).rank > 0


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(["update", "optimizer", "groups", "more", "files", "settings", "sha256"]),
    json_values,
    st.booleans(),
)
def test_any_facts_of_a_checkpoint_end_in_words(tmp_path, name, value, signed):
    """Even where somebody made the checksum fit."""
    run = tmp_path / "run"
    place = checkpoint.folder_of(run, 1)
    if not place.exists():
        checkpoint.save(run, made(1), "x.safetensors", b"")
        (tmp_path / "facts").write_bytes((place / checkpoint.FACTS).read_bytes())
    facts = {**json.loads((tmp_path / "facts").read_text()), name: value}
    if signed:
        del facts["sha256"]
        facts["sha256"] = checkpoint._digest(facts)
    (place / checkpoint.FACTS).write_text(json.dumps(facts))
    with contextlib.suppress(RunError):
        found = checkpoint.newest(run)
        assert checkpoint.load(run, found.update, torch.device("cpu")).adapter.numel()


def test_json_that_is_nested_deeply_is_refused_in_words(kit, make_plan, tmp_path):
    deep = "[" * 100_000
    plan = make_plan(train={"updates": 1}, sampling={"prompts": []})
    list(kit.train(plan))
    (plan.folder / "plan.json").write_text(deep)
    with pytest.raises(RunError, match="nested too deeply"):
        read_plan(plan.folder)
    (tmp_path / "files.json").write_text(deep)
    file = tmp_path / "a"
    file.write_bytes(b"1")
    assert len(FileHashes(tmp_path / "files.json").of(file)) == 64


# -- places ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["../runs/run", "a/../../run", "/tmp/run", ".hidden", "a/b"])
def test_a_plan_whose_name_leads_elsewhere_is_refused(kit, make_plan, name):
    plan = make_plan(train={"updates": 1}, sampling={"prompts": []})
    list(kit.train(plan))
    file = plan.folder / "plan.json"
    table = json.loads(file.read_text())
    table["settings"]["name"] = name
    file.write_text(json.dumps(table))
    with pytest.raises(RunError, match="is not a plan that this lorakit reads"):
        read_plan(plan.folder)


@pytest.mark.parametrize("place", ["../secret.safetensors", "/etc/passwd", "sub/x.safetensors"])
def test_an_index_that_names_files_elsewhere_is_refused(tmp_path, place):
    index = {"weight_map": {"x": place}}
    (tmp_path / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match="which is not a file beside it"):
        Weights(tmp_path, "transformer")


def test_a_checkpoint_folder_that_is_a_link_is_not_emptied(tmp_path):
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / checkpoint.FACTS).write_text("{}")
    run = tmp_path / "run"
    for update in (2, 3):
        checkpoint.save(run, made(update), "x.safetensors", b"")
    checkpoint.folder_of(run, 1).symlink_to(precious)
    assert checkpoint.prune(run, 1) == [1, 2]
    assert (precious / checkpoint.FACTS).is_file()


def test_a_pickled_recovery_adapter_is_refused_with_advice(make_plan, tmp_path):
    file = tmp_path / "adapter.pt"
    file.write_bytes(b"\x80\x04")
    with pytest.raises(ModelError, match=r"is pickled.*runs whatever program.*\.safetensors"):
        make_plan(quantization={"name": "int8", "recovery": str(file)})


def test_a_run_folder_that_is_a_link_is_not_written_to(kit, make_plan, tmp_path):
    plan = make_plan()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    plan.folder.parent.mkdir(parents=True, exist_ok=True)
    plan.folder.symlink_to(elsewhere)
    with pytest.raises(RunError, match="is a link to"):
        next(iter(kit.train(plan)))
    assert not list(elsewhere.iterdir())
