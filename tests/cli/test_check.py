"""`lorakit check`."""

import json

import pytest

from lorakit.cli import run
from tests.pictures import scene

GOOD = "photorealistic, maya portrait in a garden, shot on Canon R5 85mm, natural lighting, 8K"


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "pictures"
    made.mkdir()
    for number in range(2):
        scene(number).save(made / f"{number}.png")
        (made / f"{number}.txt").write_text(f"{GOOD}, {number}")
    return made


def checked(capsys, *arguments):
    given = ["--family", "qwen", "--trigger", "maya", "--set", "train.resolution=256"]
    code = run(["check", *given, *map(str, arguments)])
    return code, capsys.readouterr().out


def test_nothing_odd(capsys, folder):
    code, said = checked(capsys, folder)
    assert code == 0
    assert said.splitlines()[-1] == "2 pictures looked at, 0 findings"
    assert "256x256 2" in said


def test_a_folder_is_enough(capsys, folder):
    (folder / "1.txt").write_text(GOOD + ", 0")
    assert run(["check", str(folder)]) == 1
    said = capsys.readouterr().out
    assert "2 pictures with the caption of another" in said
    assert "256x256 2" in said
    assert "advised" not in said


def test_captions_and_prompts_that_miss_the_advice(capsys, folder):
    (folder / "1.txt").write_text("maya")
    code, said = checked(
        capsys, folder, "--set", 'sampling.prompts=["natural lighting, maya in a very long garden path"]'
    )
    assert code == 1
    assert "1.png: 4 characters, where 50 to 200 are advised" in said
    assert "prompt 'natural lighting" in said
    assert "lighting then subject" in said
    assert "The advice is" in said
    assert "0.png" not in said


def test_as_json(capsys, folder):
    (folder / "0.txt").write_text("maya, a")
    (folder / "1.txt").write_text("maya, a")
    code, said = checked(capsys, folder, "--json")
    report = json.loads(said)
    assert code == 1
    assert report["pictures"] == 2
    assert [one["shape"] for one in report["buckets"]] == ["256x256"]
    assert {
        "kind": "identical",
        "weight": "warning",
        "where": str(folder / "0.png"),
        "message": "2 pictures have the same caption: 'maya, a'",
        "others": [],
    } in report["findings"]


def test_what_matters_comes_first_and_only_some_are_named(capsys, folder):
    (folder / "broken.png").write_text("broken")
    for number in range(2, 7):
        scene(number, (64, 64)).convert("L").save(folder / f"{number}.png")
    code, said = checked(capsys, folder)
    lines = said.splitlines()
    assert code == 1
    heads = [lines.index(head) for head in ("Mend first", "Worth a look", "Good to know")]
    assert heads == sorted(heads)
    assert lines[1:4] == [
        "  1 picture not readable",
        "    broken.png: it is not a picture",
        "    -> Save it again from the original, or remove it.",
    ]
    assert "    and 2 more" in lines  # of five that are grey
    assert lines[-1].endswith("on 6 pictures")


def test_several_folders_and_a_configuration(capsys, folder, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (folder / "1.png").rename(other / "1.png")
    (folder / "1.txt").rename(other / "1.txt")
    assert checked(capsys, folder, other)[1].splitlines()[-1] == "2 pictures looked at, 0 findings"
    config = tmp_path / "run.toml"
    config.write_text(f'family = "qwen"\ntrigger = "maya"\n[[data]]\nfolder = "{folder}"\n[train]\nresolution = 256\n')
    assert run(["check", "--config", str(config)]) == 0
    assert "1 picture looked at, 0 findings" in capsys.readouterr().out


def test_names_do_not_steer_the_terminal(capsys, folder):
    (folder / "\x1b[31mred\n.png").write_text("broken")
    code, said = checked(capsys, folder)
    assert code == 1
    assert "\x1b" not in said
    assert "\\x1b[31mred\\n.png" in said


def test_a_page_is_written(capsys, folder, tmp_path):
    code, said = checked(capsys, folder, "-o", tmp_path / "page.html")
    assert code == 0
    assert str(tmp_path / "page.html") in said
    assert (tmp_path / "page.html").read_text().count("<article") == 2
    assert not list(tmp_path.glob(".page*"))


@pytest.mark.parametrize("place", ["nowhere/page.html", "pictures"])
def test_a_page_that_cannot_be_written(capsys, folder, tmp_path, place):
    assert run(["check", "--family", "qwen", str(folder), "--html", str(tmp_path / place)]) == 2
    assert "cannot be written" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["--config", "{config}"]])
def test_no_folder_is_refused(capsys, tmp_path, arguments):
    (tmp_path / "run.toml").write_text('family = "qwen"\n')
    given = [one.format(config=tmp_path / "run.toml") for one in arguments]
    assert run(["check", "--family", "qwen", *given]) == 2
    assert "no folder is named" in capsys.readouterr().err


def test_a_folder_that_is_not_there_is_refused(capsys, tmp_path):
    assert run(["check", "--family", "qwen", str(tmp_path / "nowhere")]) == 2
    assert "there is no folder" in capsys.readouterr().err
