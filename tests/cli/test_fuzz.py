"""Whatever is written into files and folders, lorakit answers in words: 0, or 2 with one paragraph, and no bug."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from lorakit.cli import run
from lorakit.settings import Settings

OFTEN = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
PLACES = [
    (section, name)
    for section, about in Settings.model_json_schema()["$defs"].items()
    for name in about.get("properties", {})
    if section != "Data"
]
SECTIONS = {"TextEncoder": "text_encoder"}


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "pictures"
    made.mkdir()
    Image.new("RGB", (64, 64), (40, 90, 120)).save(made / "0.png")
    (made / "0.txt").write_text("a red circle")
    return made


def answers(capsys, *arguments):
    code = run([str(one) for one in arguments])
    said = capsys.readouterr()
    assert code in (0, 2), said.err
    assert "should not" not in said.err
    assert "Traceback" not in said.err
    assert not set("\x1b\x07\x9b") & set(said.err)
    return code


def plan(capsys, folder, *more):
    return answers(capsys, "plan", "--family", "qwen", "--preset", "none", "--data", folder, "--source", "toy", *more)


toml_values = st.recursive(
    st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats() | st.text(max_size=12).map(json.dumps),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=4,
)


def written(value):
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{', '.join(map(written, value))}]"
    return str(value)


@OFTEN
@given(st.sampled_from(PLACES), toml_values)
def test_any_value_of_any_setting(capsys, folder, tmp_path, place, value):
    section = SECTIONS.get(place[0], place[0].lower())
    file = tmp_path / "run.toml"
    file.write_text(f"[{section}]\n{place[1]} = {written(value)}\n", encoding="utf-8")
    plan(capsys, folder, "--config", file)


@OFTEN
@given(st.binary(max_size=80) | st.text(max_size=80).map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_any_bytes_as_a_configuration(capsys, folder, tmp_path, data):
    file = tmp_path / "run.toml"
    file.write_bytes(data)
    plan(capsys, folder, "--config", file)


@OFTEN
@given(st.text(max_size=60))
def test_any_word_after_set(capsys, folder, text):
    plan(capsys, folder, "--set", text)


@OFTEN
@given(st.binary(max_size=120))
def test_any_bytes_as_a_caption(capsys, folder, data):
    (folder / "0.txt").write_bytes(data)
    plan(capsys, folder, "--trigger", "sks")
    answers_check(capsys, folder)


def answers_check(capsys, folder):
    code = run(["check", str(folder)])
    said = capsys.readouterr()
    assert code in (0, 1, 2), said.err
    assert "should not" not in said.err


names = st.text(st.characters(exclude_characters="/\x00", exclude_categories=("Cs",)), min_size=1, max_size=40)


@OFTEN
@given(names.filter(lambda name: name.strip(".") and len(name.encode()) < 200))
def test_any_name_of_a_folder(capsys, folder, tmp_path, name):
    place = tmp_path / "named" / name
    shutil.copytree(folder, place)
    try:
        plan(capsys, place, "--trigger", name)
        plan(capsys, place.parent, "--trigger", "sks")
    finally:
        shutil.rmtree(place)


@OFTEN
@given(st.binary(max_size=200))
def test_any_bytes_as_a_plan(capsys, tmp_path, data):
    (tmp_path / "run").mkdir(exist_ok=True)
    (tmp_path / "run" / "plan.json").write_bytes(data)
    assert answers(capsys, "resume", tmp_path / "run") == 2


@OFTEN
@given(data=st.data())
def test_any_change_of_a_plan(capsys, folder, tmp_path, data):
    place = tmp_path / "run"
    if not place.exists():
        run(["plan", "--family", "qwen", "--preset", "none", "--data", str(folder), "--source", "toy", "--json"])
        place.mkdir()
        (tmp_path / "good.json").write_text(capsys.readouterr().out)
    good = Path(tmp_path / "good.json").read_text()
    table = json.loads(good)
    section = data.draw(st.sampled_from(sorted(table["settings"])))
    table["settings"][section] = data.draw(
        st.none() | st.integers() | st.text(max_size=5) | st.just({}) | st.just([{}])
    )
    (place / "plan.json").write_text(json.dumps(table))
    (place / "events.jsonl").write_bytes(data.draw(st.binary(max_size=60)))
    from lorakit.engine.run_folder import events_of, finished, read_plan
    from lorakit.errors import RunError

    assert finished(place) == 0
    assert list(events_of(place)) == []
    try:
        read_plan(place)
    except RunError:
        return
