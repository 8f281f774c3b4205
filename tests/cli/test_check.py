"""`lorakit check`."""

import json

import pytest
from PIL import Image

from lorakit.cli import run

GOOD = "photorealistic, maya portrait in a garden, shot on Canon R5 85mm, natural lighting"


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "pictures"
    made.mkdir()
    for number in range(2):
        Image.new("RGB", (1024, 1024), (90 * number, 90, 120)).save(made / f"{number}.png")
        (made / f"{number}.txt").write_text(f"{GOOD}, {number}")
    return made


def checked(capsys, *arguments):
    code = run(["check", "--family", "qwen", "--trigger", "maya", *map(str, arguments)])
    return code, capsys.readouterr().out


def test_nothing_odd(capsys, folder):
    code, said = checked(capsys, folder)
    assert code == 0
    assert said == "2 pictures looked at, 0 findings\n"


def test_captions_and_prompts_that_miss_the_advice(capsys, folder):
    (folder / "1.txt").write_text("maya")
    code, said = checked(
        capsys, folder, "--set", 'sampling.prompts=["natural lighting, maya in a very long garden path"]'
    )
    assert code == 1
    assert "1.png: 4 characters, where 50 to 200 are advised" in said
    assert "prompt 'natural lighting" in said
    assert "lighting then subject" in said
    assert "0.png" not in said


def test_as_json(capsys, folder):
    (folder / "0.txt").write_text("maya, a")
    (folder / "1.txt").write_text("maya, a")
    code, said = checked(capsys, folder, "--json")
    found = json.loads(said)
    assert code == 1
    assert {"where": "", "message": "2 pictures have the same caption: 'maya, a'"} in found


def test_no_folder_is_refused(capsys):
    assert run(["check", "--family", "qwen"]) == 2
    assert "no folder is named" in capsys.readouterr().err
