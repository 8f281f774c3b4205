"""`lorakit inspect` and `lorakit export` on the command line."""

import json

import pytest
import torch

from lorakit import Kit
from lorakit.cli import run
from lorakit.engine.lora_pairs import Pair
from tests.engine.lora_files import effect, made, write


@pytest.fixture(scope="module")
def family():
    return Kit().shelves.families["qwen"]


@pytest.fixture
def file(tmp_path, family):
    return write(tmp_path / "a.safetensors", family, made(family), about={"modelspec.trigger_phrase": "sks\x1b]0;x"})


def lorakit(capsys, *arguments):
    code = run([str(one) for one in arguments])
    return code, *capsys.readouterr()


def refused(capsys, *arguments):
    code, said, error = lorakit(capsys, *arguments)
    assert (code, said) == (2, "")
    assert error.startswith("error: ")
    assert error.count("\n") == 1, error
    return error


def test_inspect_for_a_person(capsys, file):
    code, said, _ = lorakit(capsys, "inspect", file)
    assert code == 0
    lines = dict(line.split(maxsplit=1) for line in said.splitlines() if " " in line)
    assert lines["family"] == "Qwen-Image (qwen)"
    assert lines["rank"] == "4"
    assert lines["alpha"] == "none: scale 1"
    assert lines["layout"] == "diffusers, F32"
    assert "\x1b" not in said  # a file of somebody else does not get at the terminal
    assert "img_mlp.net.0.proj" in said


def test_norms_are_those_of_the_effects(capsys, tmp_path, family):
    pairs = made(family, scale=0.5)
    file = write(tmp_path / "k.safetensors", family, pairs, "kohya")
    code, said, _ = lorakit(capsys, "inspect", file, "--json")
    found = json.loads(said)
    assert code == 0
    assert (found["families"], found["layout"], found["alphas"]) == (["qwen"], "kohya", {"2.0": len(pairs)})
    for name, pair in pairs.items():
        flat = "lora_unet_" + name.removeprefix("transformer.").replace(".", "_")
        assert found["norms"][flat] == pytest.approx(float(effect(pair).norm()), rel=1e-6)
    whole = sum(float(effect(pair).norm()) ** 2 for pair in pairs.values()) ** 0.5
    assert sum(one["norm"] ** 2 for one in found["kinds"].values()) ** 0.5 == pytest.approx(whole, rel=1e-6)


def test_numbers_that_are_not_finite_and_layers_of_nothing(capsys, tmp_path, family):
    pairs = made(family)
    first, second, *_ = pairs
    pairs[first].lora_b[0, 0] = float("nan")
    pairs[second] = Pair(pairs[second].lora_a, torch.zeros_like(pairs[second].lora_b))
    file = write(tmp_path / "n.safetensors", family, pairs)
    said = lorakit(capsys, "inspect", file)[1]
    assert "1 layer with numbers that are not finite" in said
    assert f"1 layers of {len(pairs)} change nothing".replace("1 layers", "1 layer") in said
    assert json.loads(lorakit(capsys, "inspect", file, "--json")[1])["norms"][first] == -1


def test_export_tells_what_it_did(capsys, tmp_path, file):
    out = tmp_path / "b.safetensors"
    code, said, _ = lorakit(
        capsys, "export", file, file, "--weight", "0.7", "--weight", "0.5", "--rank", "2", "-o", out
    )
    assert code == 0
    assert "0.7 x a.safetensors + 0.5 x a.safetensors" in said
    assert "by joining ranks, which is exact" in said
    assert "of the energy is kept" in said
    told = json.loads(
        lorakit(capsys, "export", file, "--layout", "kohya", "-o", tmp_path / "c.safetensors", "--json")[1]
    )
    assert (told["family"], told["done"]["layout"], told["done"]["ranks"]) == ("qwen", "kohya", [4])


def test_nothing_is_overwritten_unasked(capsys, tmp_path, file):
    before = file.read_bytes()
    assert "say --force" in refused(capsys, "export", file, "-o", file)
    assert file.read_bytes() == before
    assert lorakit(capsys, "export", file, "--layout", "comfyui", "-o", file, "--force")[0] == 0
    assert file.read_bytes() != before


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--weight", "much"), "'much' is no number"),
        (("--weight", "nan"), "'nan' is no number"),
        (("--weight", "0"), "is no number from -100 to 100 other than 0"),
        (("--weight", "1", "--weight", "2"), "1 files and 2 weights"),
        (("--alpha", "some"), "is no alpha"),
        (("--alpha", "0"), "is no alpha"),
        (("--alpha", "8"), "have no alpha"),
        (("--family", "qwan"), "Did you mean 'qwen'"),
        (("--family", "sdxl"), "is not for SDXL. its layers are those of Qwen-Image"),
        (("-o", "x.bin"), "not called .safetensors"),
    ],
)
def test_bad_options(capsys, tmp_path, file, arguments, says):
    assert says in refused(capsys, "export", file, "-o", tmp_path / "b.safetensors", *arguments)
    assert not (tmp_path / "b.safetensors").exists()


def test_broken_files(capsys, tmp_path, file):
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(file.read_bytes()[:-100])
    for command in (("inspect", cut), ("export", cut, "-o", tmp_path / "b.safetensors")):
        assert "is broken" in refused(capsys, *command)
    assert "no file" in refused(capsys, "inspect", tmp_path / "gone.safetensors")
