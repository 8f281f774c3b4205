"""A cache is shared, killed, damaged and filled up, and what comes out of it is always what was put in."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from lorakit.engine.cache import Cache
from lorakit.engine.caching import LatentStore, TextStore, frames, words
from lorakit.engine.material import gather
from lorakit.engine.source import cache_folder
from lorakit.errors import DataError
from lorakit.events import PhaseFinished, PhaseProgress, RunFinished

PICTURES = Path(__file__).parents[2] / "docs" / "examples" / "pictures"
SHORT = {"train": {"updates": 1}, "sampling": {"prompts": []}}


# -- every input has a say ---------------------------------------------------------------------------------------


def caption(folder, plan):
    (folder / "0.txt").write_text("a red circle!")


def picture_bytes(folder, plan):
    Image.new("RGB", (32, 32), (1, 2, 3)).save(folder / "0.png")


def crop(folder, plan):
    Image.new("RGB", (40, 32), (0, 200, 120)).save(folder / "0.png")


INPUTS = {
    "caption": (caption, {}, "text"),
    "trigger": (None, {"trigger": "zwx"}, "text"),
    "precision": (None, {"train": {"precision": "bf16"}}, "text"),
    "picture": (picture_bytes, {}, "latents"),
    "crop": (crop, {}, "latents"),
    "resolution": (None, {"train": {"resolution": 16}}, "latents"),
    "variant": (None, {"variant": "edit-2509"}, "text"),
    "template": (None, {"variant": "edit-2509", "text_encoder": {"template": "text-to-image"}}, "text"),
}


def names(context_for, family, plan) -> dict[str, set[str]]:
    from lorakit.dataset import index

    context = context_for(plan)
    found = index(plan.settings.data, family.planned_sizing(plan.settings))
    texts, latents = TextStore(context), LatentStore(context)
    return {
        "text": {texts.key(one) for one in words(plan, found, [])},
        "latents": {latents.key(one) for one in frames(found, [])},
    }


@pytest.mark.parametrize("name", INPUTS)
def test_a_changed_input_misses_and_the_other_half_is_reused(make_plan, context_for, family, pictures, name):
    change, tables, half = INPUTS[name]
    if name == "template":
        before = names(context_for, family, make_plan(variant="edit-2509"))
    else:
        before = names(context_for, family, make_plan())
    if change:
        change(pictures, None)
    after = names(context_for, family, make_plan(**tables))
    other = {"text": "latents", "latents": "text"}[half]
    assert before[half] != after[half]
    assert before[other] == after[other]


def test_precision_changes_no_latents(make_plan, context_for, drained):
    """So their names need not hold it."""
    found = []
    for precision in ("fp32", "bf16"):
        plan = make_plan(output=f"{make_plan().settings.output}-{precision}", train={"precision": precision})
        material = drained(gather(context_for(plan)))
        found.append(torch.cat([material.item(number).latents.flatten() for number in range(4)]))
    assert torch.equal(*found)


# -- damage ------------------------------------------------------------------------------------------------------


def flip(path):
    data = bytearray(path.read_bytes())
    data[-9] ^= 1
    path.write_bytes(data)


def test_a_flipped_bit_is_noticed_and_the_entry_made_anew(kit, make_plan, of_kind):
    plan = make_plan(**SHORT, name="first")
    list(kit.train(plan))
    files = sorted(cache_folder(plan).glob("??/*.safetensors"))
    before = [file.read_bytes() for file in files]
    for file in files[::2]:
        flip(file)
    events = list(kit.train(make_plan(**SHORT, name="second")))
    assert isinstance(events[-1], RunFinished)
    made = [one for one in of_kind(events, PhaseProgress) if one.phase.startswith("cache")]
    assert len(made) == len(files[::2])
    assert [file.read_bytes() for file in files] == before


def test_what_was_checked_once_is_read_without(tmp_path, monkeypatch):
    cache = Cache(tmp_path)
    cache.store("aa", {"x": torch.ones(3, dtype=torch.bfloat16), "y": torch.tensor(2)})
    assert "aa" in cache
    monkeypatch.setattr("lorakit.engine.cache._content", lambda tensors: pytest.fail("checked again"))
    assert cache.load("aa")["y"] == 2


def test_a_fill_that_was_stopped_goes_on(kit, make_plan, of_kind):
    plan = make_plan(**SHORT)
    events = kit.train(plan)
    for event in events:
        if isinstance(event, PhaseProgress) and event.phase == "cache images" and event.done == 2:
            events.close()
    notes = {one.phase: one.note for one in of_kind(kit.resume(plan.folder), PhaseFinished)}
    assert notes["cache text"] == "0 encoded, 4 reused"
    assert notes["cache images"] == "1 encoded, 3 reused"  # the one behind the two that were told was kept too


def test_a_full_disk_is_told(kit, make_plan, monkeypatch):
    plan = make_plan(**SHORT)

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    events = kit.train(plan)
    for event in events:
        if isinstance(event, PhaseFinished) and event.phase == "index":
            monkeypatch.setattr(os, "fsync", full)
            break
    with pytest.raises(DataError, match=r"\.cache.*cannot be written.*No space left.*Free some space"):
        list(events)
    assert not list(cache_folder(plan).glob("??/.*"))


@pytest.mark.slow
def test_two_processes_fill_one_cache(tmp_path):
    command = [sys.executable, "-m", "lorakit", "train", "--family", "qwen", "--preset", "toy", "--data", str(PICTURES)]
    command += ["--trigger", "sks", "--output", str(tmp_path)]
    for setting in ("train.updates=1", "sampling.every=0", "sampling.strengths=[]", "validation.every=0"):
        command += ["--set", setting]
    both = [
        subprocess.Popen([*command, "--name", name], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for name in ("one", "two")
    ]
    for process in both:
        said, _ = process.communicate(timeout=300)
        assert process.returncode == 0, said
    one, two = (tmp_path / name / f"{name}.safetensors" for name in ("one", "two"))
    from safetensors.torch import load_file

    assert all(torch.equal(tensor, load_file(two)[name]) for name, tensor in load_file(one).items())
    assert not [path for path in (tmp_path / ".cache").rglob(".*") if path.is_file()]
