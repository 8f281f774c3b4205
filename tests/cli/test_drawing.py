"""`lorakit sample` and `lorakit grid` refuse what they must before anything is loaded."""

import json

import pytest

from lorakit import Kit
from lorakit.cli import run
from tests.engine.lora_files import made, write


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    family = Kit().shelves.families["qwen"]
    return write(tmp_path_factory.mktemp("files") / "a.safetensors", family, made(family))


def refused(capsys, *arguments):
    assert run([str(one) for one in arguments]) == 2
    out, said = capsys.readouterr()
    assert out == ""
    assert said.startswith("error: ")
    assert said.count("\n") == 1, said
    return said


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--strength", "strong"), "'strong' is no number from -4 to 4"),
        (("--strength", "nan"), "'nan' is no number"),
        (("--strength", "9"), "'9' is no number"),
        (("--guidance", "much"), "'much' is no number from 1 to 100"),
        (("--size", "large"), "'large' is no size"),
        (("--size", "50"), "is not a multiple of 16"),
        (("--family", "sdxl"), "is not for SDXL"),
        (("--variant", "edit-2510"), "has no variant"),
        (("--source", "./nowhere"), "no model folder or file"),
        (("--reference", "gone.png"), "this variant takes none"),
        (("--set", "sampling.stps=3"), "Did you mean sampling.steps"),
        (("-o", "x.jpg"), "not called .png"),
    ],
)
def test_bad_options_of_sample(capsys, tmp_path, file, arguments, says):
    said = refused(capsys, "sample", file, "--prompt", "x", "-o", tmp_path / "x.png", *arguments)
    assert says in said
    assert not (tmp_path / "x.png").exists()


def test_what_is_there_is_kept(capsys, tmp_path, file):
    (tmp_path / "x.png").write_bytes(b"mine")
    assert "say --force" in refused(capsys, "sample", file, "--prompt", "x", "-o", tmp_path / "x.png")
    assert (tmp_path / "x.png").read_bytes() == b"mine"
    assert "no prompt is named" in refused(capsys, "sample", file, "-o", tmp_path / "y.png")


@pytest.mark.parametrize("command", [("sample", "-o", "x.png"), ("grid",)])
def test_what_is_no_run(capsys, tmp_path, command):
    name, *more = command
    assert "is not a run" in refused(capsys, name, tmp_path, *more)
    (tmp_path / "plan.json").write_text("{}")
    assert "is not a plan" in refused(capsys, name, tmp_path, *more)


@pytest.mark.parametrize("option", [("--strength", "x"), ("--guidance", "0.5"), ("--strength", "inf")])
def test_bad_options_of_grid(capsys, tmp_path, option):
    assert "is no number" in refused(capsys, "grid", tmp_path, *option)


@pytest.mark.slow
def test_pictures_of_several_prompts_as_json(capsys, tmp_path, file):
    plain = ["sample", file, "-p", "a circle", "-p", "a star", "--size", "32", "--steps", "2", "--seed", "5"]
    out = tmp_path / "x.png"
    arguments = [*plain, "--guidance", "1.5", "--strength", "-0.5", "-o", out, "--output", tmp_path, "--json"]
    assert run([str(one) for one in arguments]) == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    drawn = [event for event in events if event["event"] == "PictureDrawn"]
    assert [(one["seed"], one["strength"], one["guidance"]) for one in drawn] == [(5, -0.5, 1.5), (6, -0.5, 1.5)]
    assert (tmp_path / "x-0.png").is_file()
    assert (tmp_path / "x-1.png").is_file()
