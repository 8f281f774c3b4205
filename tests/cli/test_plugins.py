"""`lorakit plugins` with the last plan, the trace of hook calls, and `lorakit new-plugin`."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lorakit import cli, last_plan
from tests.cli.test_bad_input import refused

ROOT = Path(__file__).parents[2]
VOICE = """
from lorakit import hookimpl, never

@hookimpl
def quantization_rules(request, family):
    yield never("quantization.name", "none", because=f"our cards are small, and {family.title} is large")
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder of its own, with a cache of its own, a plugin file and the pictures of the examples."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    Path("voice.py").write_text(VOICE)
    return tmp_path


def run(capsys, *words):
    code = cli.run([*map(str, words)])
    said = capsys.readouterr()
    assert code == 0, said.err
    return said


PLAN = ("plan", "--family", "qwen", "--preset", "none", "--trigger", "sks", "--data", ROOT / "docs/examples/pictures")


# -- who decided what --------------------------------------------------------------------------------------------


def listed(capsys, *before):
    return {row["plugin"]: row for row in json.loads(run(capsys, *before, "plugins", "--json").out)}


def test_plugins_are_listed_with_their_hooks_and_nouns(here, capsys):
    rows = listed(capsys, "--plugin", "voice.py")
    assert rows["voice"]["hooks"] == ["quantization_rules"]
    assert rows["qwen"]["brings"] == ["family qwen"]
    assert {"register", "scheduler_rules", "check_plan"} <= set(rows["qwen"]["hooks"])  # its family's too
    assert "quantization int8" in rows["lorakit"]["brings"]
    assert rows["voice"]["decided"] == rows["qwen"]["decided"] == []  # there was no plan yet


def test_the_last_plan_is_told(here, capsys):
    run(capsys, "--plugin", "voice.py", *PLAN)
    rows = listed(capsys, "--plugin", "voice.py")
    assert "quantization.name = int8" in rows["qwen"]["decided"]
    assert "scheduler.name = flowmatch" in rows["qwen"]["decided"]
    assert rows["voice"]["decided"] == []
    assert rows["voice"]["said"] == ["quantization.name never 'none'"]
    assert "speed.cpu_threads" not in str(rows["qwen"])
    said = run(capsys, "--plugin", "voice.py", "plugins").out
    assert "the last plan, sks (qwen image, " in said
    assert "--trigger" in said  # people decide too

    run(capsys, *PLAN, "--set", "quantization.name=none")
    rows = listed(capsys)
    assert "quantization.name" not in str(rows["qwen"]["decided"])
    assert "quantization.name prefer 'int8'" in rows["qwen"]["said"]


def test_a_torn_note_of_the_last_plan_is_nothing(here, capsys):
    run(capsys, *PLAN)
    (note,) = (here / "cache" / "lorakit").glob("last-plan-*")
    for text in ("{", "[]", '{"name": 1}', "\udcff"):
        note.write_bytes(text.encode("utf-8", "surrogateescape"))
        assert last_plan.recall() is None
        run(capsys, "plugins")


def test_a_cache_that_cannot_be_written_is_no_error(here, capsys, monkeypatch):
    Path("file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(here / "file"))
    run(capsys, *PLAN)
    assert last_plan.recall() is None


def test_secrets_are_not_remembered(here, capsys, monkeypatch):
    monkeypatch.setenv("STORE_TOKEN", "quite-secret-word")
    run(capsys, *PLAN, "--set", "sampling.prompts=['quite-secret-word']")
    (note,) = (here / "cache" / "lorakit").glob("last-plan-*")
    assert "quite-secret-word" not in note.read_text()


# -- the trace ---------------------------------------------------------------------------------------------------


def test_every_hook_call_is_shown_with_its_answer(here, capsys, monkeypatch):
    monkeypatch.setenv("LORAKIT_TRACE", "1")
    said = run(capsys, "--plugin", "voice.py", *PLAN).err.splitlines()
    assert all(line.startswith("hook: ") for line in said)
    assert "hook: register(Registry) qwen -> nothing" in said
    expected = "hook: quantization_rules(Request, Qwen) voice -> never quantization.name = none, because our cards are"
    assert any(line.startswith(expected) for line in said)
    assert "hook: check_plan(Plan) family qwen -> nothing" in said
    assert not logging.getLogger("lorakit.hooks").handlers  # and nothing stays behind


@pytest.mark.parametrize("value", [None, "", "0"])
def test_nothing_is_shown_unasked(here, capsys, monkeypatch, value):
    monkeypatch.delenv("LORAKIT_TRACE", raising=False)
    if value is not None:
        monkeypatch.setenv("LORAKIT_TRACE", value)
    assert "hook" not in run(capsys, *PLAN).err


def test_a_failing_hook_is_shown_failing_and_secrets_are_not_shown(here, capsys, monkeypatch):
    monkeypatch.setenv("LORAKIT_TRACE", "1")
    monkeypatch.setenv("STORE_TOKEN", "quite-secret-word")
    Path("bad.py").write_text(
        "from lorakit import hookimpl\n\n@hookimpl\ndef check_plan(plan):\n    1 / 0\n\n"
        "@hookimpl\ndef scheduler_rules(request):\n    return ['quite-secret-word \\x1b[2J']\n"
    )
    assert cli.run(["--plugin", "bad.py", *map(str, PLAN)]) == 2
    said = capsys.readouterr().err
    assert "bad -> '(hidden) " in said or "bad -> (hidden)" in said
    assert "quite-secret-word" not in said
    assert "\x1b" not in said
    Path("bad.py").write_text(Path("bad.py").read_text().replace("['quite-secret-word \\x1b[2J']", "()"))
    assert cli.run(["--plugin", "bad.py", *map(str, PLAN)]) == 2
    assert "hook: check_plan(Plan) bad -> ZeroDivisionError: division by zero" in capsys.readouterr().err


# -- a new plugin ------------------------------------------------------------------------------------------------


def files(folder):
    every = (path for path in folder.rglob("*") if path.is_file() and path.suffix != ".pyc")
    return {str(path.relative_to(folder)): path.read_text() for path in every}


def test_a_new_family_is_the_example_under_another_name(here, capsys):
    run(capsys, "new-plugin", "hello", "--kind", "family")
    example = ROOT / "docs" / "examples" / "lorakit-hello"
    left = (".pytest_cache", ".ruff_cache")
    expected = {name: text for name, text in files(example).items() if not name.startswith(left)}
    assert files(here / "lorakit-hello") == expected
    run(capsys, "new-plugin", "two-words", "--kind", "family")
    assert "hello" not in str(files(here / "lorakit-two-words")).lower()
    assert (here / "lorakit-two-words" / "lorakit_two_words" / "family.py").read_text().count(
        "class TwoWords(Family)"
    ) == 1


@pytest.mark.parametrize(("kind", "chosen"), [("rules", ()), ("family", ("-k", "facts or refuses or warns"))])
def test_a_new_plugin_passes_its_own_tests(here, capsys, kind, chosen):
    """All of them in `.ci/examples`, installed; here those of the family that take no training."""
    said = run(capsys, "new-plugin", "acme-two", "--kind", kind).out
    place = here / "lorakit-acme-two"
    assert f"written      {place.name}" in said
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-W", "error", *chosen],
        cwd=place,
        env={**os.environ, "PYTHONPATH": str(place), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout
    assert " passed" in done.stdout
    plain = ("--isolated", "--no-cache", "--line-length", "120", place)
    for tool in (("check", "--select", "E,F,W,B,UP,RET"), ("format", "--check")):
        checked = subprocess.run(
            [sys.executable, "-m", "ruff", *tool, *plain], capture_output=True, text=True, timeout=60
        )
        assert checked.returncode == 0, checked.stdout


def test_nothing_is_overwritten(here, capsys):
    mine = here / "lorakit-acme"
    mine.mkdir()
    (mine / "README.md").write_text("mine")
    assert "there is something at lorakit-acme already" in refused(capsys, "new-plugin", "acme", "--kind", "rules")
    assert files(mine) == {"README.md": "mine"}
    (here / "lorakit-link").symlink_to(here / "nowhere")
    assert "there is something at" in refused(capsys, "new-plugin", "link", "--kind", "rules")
    assert sorted(path.name for path in here.iterdir() if path.is_dir()) == ["lorakit-acme"]


@pytest.mark.parametrize("name", ["Acme", "2nd", "", "a b", "../up", "a__b", "a" * 41, "lorakit-"])
def test_names_that_cannot_be(here, capsys, name):
    assert "is no name for a plugin" in refused(capsys, "new-plugin", "--kind", "rules", "--", name)


@pytest.mark.parametrize("name", ["qwen", "presets", "train", "lorakit-flux"])
def test_names_that_are_taken(here, capsys, name):
    assert "already" in refused(capsys, "new-plugin", name, "--kind", "rules")


def test_a_folder_that_cannot_be_written(here, capsys):
    said = refused(capsys, "new-plugin", "acme", "--kind", "rules", "--output", here / "nowhere")
    assert "cannot be written. Set in --output" in said
