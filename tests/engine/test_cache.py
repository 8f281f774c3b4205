"""Cached values are named by all that feeds them: nothing stale is served, nothing is computed twice."""

from __future__ import annotations

import os
import shutil
import threading
import time
from dataclasses import replace

import pytest
import safetensors.torch
import torch
from PIL import Image

from lorakit.dataset import index
from lorakit.engine import caching
from lorakit.engine.cache import Cache, FileHashes, write_atomically
from lorakit.engine.caching import LatentStore, TextStore, Words, words
from lorakit.engine.material import gather
from lorakit.engine.parts import Text
from lorakit.engine.pixels import load
from lorakit.errors import ConfigError, DataError


@pytest.fixture
def dataset_of(family):
    def read(plan):
        return index(plan.settings.data, family.sizing(plan.settings.variant, None, None))

    return read


@pytest.fixture
def work(context_for, family, drained, monkeypatch):
    """Caches a plan's text and pictures; what was loaded and encoded to do so."""

    def counted(kind, seen):
        make = getattr(type(family), kind).__get__(family)

        def load(plan, source):
            part = make(plan, source)
            seen.append(kind)
            inner = part.encode

            def encode(items, *references):
                seen.extend(items if kind == "text_encoder" else ["picture"] * len(items))
                return inner(items, *references)

            part.encode = encode
            return part

        return load

    def cache(plan) -> list[str]:
        seen: list[str] = []
        for kind in ("text_encoder", "image_coder"):
            monkeypatch.setattr(family, kind, counted(kind, seen))
        drained(gather(context_for(plan)))
        return seen

    return cache


def test_everything_is_encoded_once_and_then_nothing_is_even_loaded(make_plan, work):
    plan = make_plan(sampling={"prompts": []})
    texts = ["sks, a red circle", "sks, a blue star on the left", "sks, a green square at the bottom", "sks, a circle"]
    assert sorted(work(plan)) == sorted(["text_encoder", *texts, "image_coder", *["picture"] * 4])
    assert work(plan) == []


def test_only_what_changed_is_encoded_again(make_plan, work, pictures):
    plan = make_plan(sampling={"prompts": []})
    work(plan)
    (pictures / "1.txt").write_text("a blue moon", encoding="utf-8")
    Image.new("RGB", (96, 24), "white").save(pictures / "3.png")
    changed = make_plan(sampling={"prompts": []})
    assert sorted(work(changed)) == ["image_coder", "picture", "sks, a blue moon", "text_encoder"]


def test_the_empty_caption_is_cached_where_captions_are_dropped(make_plan, dataset_of):
    with_dropout, without = make_plan(train={"caption_dropout": 0.1}), make_plan()
    assert Words("") in words(with_dropout, dataset_of(with_dropout), [])
    assert Words("") not in words(without, dataset_of(without), [])


def test_prompts_and_the_negative_are_cached_where_something_is_drawn(make_plan, work):
    drawn = {"prompts": ["a moon"], "every": 1}
    texts = work(make_plan(sampling=drawn))
    assert {"a moon", " "} < set(texts)
    assert work(make_plan(sampling={**drawn, "negative": "blurry"})) == ["text_encoder", "blurry", "image_coder"]


def test_cached_values_are_the_encoded_ones(make_plan, context_for, family, drained):
    plan = make_plan(sampling={"prompts": ["a red circle"], "every": "epoch"})
    context = context_for(plan)
    material = drained(gather(context))
    encoder = family.text_encoder(plan, context.source)
    for number, sample in enumerate(material.dataset.samples):
        with torch.no_grad():
            (text,) = encoder.encode([sample.caption])
            latents = material.coder.encode(load(sample.framed)[None])[0]
        found = material.item(number)
        assert found.text.lengths == text.lengths
        assert torch.allclose(found.text.hidden, text.hidden, atol=1e-5)
        assert torch.allclose(found.latents, latents, atol=1e-5)


# -- keys --------------------------------------------------------------------------------------------------------


@pytest.fixture
def text_key(context_for):
    def key(plan, caption: str = "a red circle") -> str:
        return TextStore(context_for(plan)).key(Words(caption))

    return key


@pytest.fixture
def latent_key(context_for, dataset_of):
    def key(plan) -> str:
        return LatentStore(context_for(plan)).key(dataset_of(plan).samples[0].framed)

    return key


def test_text_is_named_by_all_that_feeds_it(make_plan, text_key, family, monkeypatch):
    edit = {"variant": "edit-2509"}
    keys = [
        text_key(make_plan()),
        text_key(make_plan(), "a blue circle"),
        text_key(make_plan(train={"precision": "bf16"})),
        text_key(make_plan(**edit)),
        text_key(make_plan(**edit, text_encoder={"template": "text-to-image"})),
    ]
    monkeypatch.setattr(type(family), "encoding_version", family.encoding_version + 1)
    keys.append(text_key(make_plan()))
    assert len(set(keys)) == len(keys)


def test_latents_are_named_by_all_that_feeds_them(make_plan, latent_key, family, pictures, monkeypatch):
    keys = [latent_key(make_plan()), latent_key(make_plan(train={"resolution": 16}))]
    Image.new("RGB", (32, 32), (1, 200, 120)).save(pictures / "0.png")  # another picture of the same size
    keys.append(latent_key(make_plan()))
    Image.new("RGB", (48, 32), (1, 200, 120)).save(pictures / "0.png")  # the same bucket, cut elsewhere
    keys.append(latent_key(make_plan()))
    monkeypatch.setattr(type(family), "encoding_version", family.encoding_version + 1)
    keys.append(latent_key(make_plan()))
    assert len(set(keys)) == len(keys)


def test_a_trigger_is_part_of_the_caption(make_plan, dataset_of):
    one, other = (words(plan, dataset_of(plan), []) for plan in (make_plan(), make_plan(trigger="zwx")))
    assert one[0] == Words("sks, a red circle")
    assert other[0] == Words("zwx, a red circle")


def test_other_weights_give_other_names(make_plan, text_key, latent_key, toy, tmp_path):
    own = tmp_path / "model"
    shutil.copytree(toy, own)
    plan = make_plan(model={"source": str(own)})
    before = text_key(plan), latent_key(plan)
    assert before == (text_key(make_plan()), latent_key(make_plan()))  # the folder's name does not matter
    for component in ("text_encoder", "vae"):
        (weights,) = (own / component).glob("*.safetensors")
        tensors = safetensors.torch.load_file(weights)
        name = next(iter(tensors))
        tensors[name] = tensors[name] * 1.01
        safetensors.torch.save_file(tensors, weights, {"format": "pt"})
    after = text_key(plan), latent_key(plan)
    assert before[0] != after[0]
    assert before[1] != after[1]


def test_what_feeds_neither_changes_no_name(make_plan, text_key, latent_key):
    one = make_plan()
    other = make_plan(
        lora={"rank": 8}, optimizer={"learning_rate": 1e-4}, seed=9, name="other", train={"batch_size": 2}
    )
    assert text_key(one) == text_key(other)
    assert latent_key(one) == latent_key(other)


# -- files -------------------------------------------------------------------------------------------------------


def test_a_file_is_hashed_once_and_remembered(tmp_path, monkeypatch):
    file = tmp_path / "picture.png"
    file.write_bytes(b"one")
    monkeypatch.setattr("lorakit.engine.cache.SETTLED", -1)
    hashes = FileHashes(tmp_path / "files.json")
    digest = hashes.of(file)
    hashes.save()
    again = FileHashes(tmp_path / "files.json")
    monkeypatch.setattr("lorakit.engine.cache._digest", lambda file: pytest.fail("read again"))
    assert again.of(file) == digest


def test_a_file_that_was_just_written_is_read_again(tmp_path):
    file = tmp_path / "picture.png"
    file.write_bytes(b"one")
    hashes = FileHashes(tmp_path / "files.json")
    before = hashes.of(file)
    file.write_bytes(b"two")  # perhaps within the same tick of the file system's clock
    assert hashes.of(file) != before


def test_an_edit_in_place_of_the_same_size_and_time_is_noticed(tmp_path, monkeypatch):
    monkeypatch.setattr("lorakit.engine.cache.SETTLED", -1)
    file = tmp_path / "picture.png"
    file.write_bytes(b"one")
    hashes = FileHashes(tmp_path / "files.json")
    before, stat = hashes.of(file), file.stat()
    time.sleep(0.05)  # past the clock tick of the file system
    with file.open("r+b") as handle:
        handle.write(b"two")
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert file.stat().st_mtime_ns == stat.st_mtime_ns
    assert hashes.of(file) != before


def test_a_torn_memory_of_hashes_is_forgotten(tmp_path):
    (tmp_path / "files.json").write_text('{"/a": [[1', encoding="utf-8")
    file = tmp_path / "picture.png"
    file.write_bytes(b"one")
    assert len(FileHashes(tmp_path / "files.json").of(file)) == 64


def test_a_torn_entry_is_removed_and_made_anew(make_plan, context_for, drained, work):
    plan = make_plan()
    work(plan)
    context = context_for(plan)
    material = drained(gather(context))
    store, caption = material.texts, Words(material.dataset.samples[0].caption)
    (entry,) = context.cache.folder.rglob(f"{store.key(caption)}.safetensors")
    entry.write_bytes(entry.read_bytes()[:-40])
    with pytest.raises(DataError, match=f"{caption.caption}.*cannot be read.*start again"):
        store[caption]
    assert caption.caption in work(plan)
    assert isinstance(store[caption], Text)


def test_a_write_that_fails_leaves_what_was_there(tmp_path, monkeypatch):
    cache = Cache(tmp_path)
    cache.store("aa", {"x": torch.ones(3)})

    def full(handle: int) -> None:
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        for key in ("aa", "bb"):
            with pytest.raises(DataError, match=r"cannot be written.*no space left"):
                cache.store(key, {"x": torch.zeros(3)})
    assert cache.load("aa")["x"].tolist() == [1, 1, 1]
    assert "bb" not in cache


def test_a_file_is_put_in_place_whole(tmp_path, monkeypatch):
    """While it is written, its name shows the old file."""
    path = tmp_path / "state.json"
    path.write_bytes(b"old")
    seen = []
    monkeypatch.setattr("os.fsync", lambda handle: seen.append(path.read_bytes()))
    write_atomically(path, b"new")
    assert seen[0] == b"old"
    assert path.read_bytes() == b"new"
    assert [one.name for one in tmp_path.iterdir()] == ["state.json"]


def test_what_a_killed_write_left_is_taken_away_after_a_day(make_plan, context_for, drained):
    context = context_for(make_plan())
    left, fresh = context.cache.folder / "ab" / ".old.1.1", context.cache.folder / "ab" / ".new.1.1"
    left.parent.mkdir(parents=True)
    for file in (left, fresh):
        file.write_bytes(b"half")
    long_ago = time.time() - 2 * 86_400
    os.utime(left, (long_ago, long_ago))
    drained(gather(context))
    assert not left.exists()
    assert fresh.exists()  # another process may be writing it


def test_a_value_is_written_while_the_next_is_encoded():
    """Each is kept on another thread while the next is made, in order, and a failure is told, that of the last too."""
    making, kept = threading.Event(), []

    def items():
        yield 0, None
        making.set()  # the first is being kept now, and waits for this
        yield 1, None

    def keep(number, _):
        assert making.wait(30)
        kept.append((number, threading.current_thread() is threading.main_thread()))
        return str(number)

    assert list(caching._behind(keep, items())) == ["0", "1"]
    assert kept == [(0, False), (1, False)]

    def fail(number, _):
        raise DataError(f"{number} cannot be kept")

    for count in (1, 2):
        with pytest.raises(DataError, match="0 cannot be kept"):
            list(caching._behind(fail, ((number, None) for number in range(count))))


def test_the_text_encoder_stays_on_the_cpu_where_it_shall(make_plan, context_for, family, monkeypatch, drained):
    """Asked of a device that holds nothing, it would have no values to answer with."""
    seen = []
    inner = type(family).text_encoder.__get__(family)

    def load(plan, source):
        seen.append(inner(plan, source))
        return seen[-1]

    monkeypatch.setattr(family, "text_encoder", load)
    for device in ("cpu", "auto"):
        context = replace(context_for(make_plan(text_encoder={"device": device})), device=torch.device("meta"))
        caching.load_encoder(context)
    assert [{one.device.type for one in encoder.module.parameters()} for encoder in seen] == [{"cpu"}, {"meta"}]


def test_a_trained_text_encoder_cannot_stay_there(kit, pictures):
    asked = {"family": "sdxl", "preset": "toy", "trigger": "sks", "data": [{"folder": str(pictures)}]}
    with pytest.raises(ConfigError, match="trained text encoder cannot stay on the CPU"):
        kit.plan({**asked, "text_encoder": {"train": True, "device": "cpu"}})
