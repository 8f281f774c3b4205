"""The house as it was planned: rooms, sizes, and who may know whom."""

import ast
import re
from pathlib import Path

import pytest

import lorakit

ROOT = Path(__file__).parents[1]
FAMILIES = sorted(path.name.removeprefix("lorakit_") for path in (ROOT / "plugins").glob("lorakit_*"))
CORE = sorted((ROOT / "core").rglob("*.py"))
SOURCES = [*CORE, *sorted((ROOT / "plugins").rglob("*.py")), *sorted((ROOT / "presets").rglob("*.py"))]


def test_there_is_a_house():
    assert "qwen" in FAMILIES
    assert len(CORE) > 30


@pytest.mark.parametrize("family", FAMILIES)
def test_no_line_of_core_names_a_family(family):
    naming = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in CORE
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if re.search(rf"\b{family}\b", line, re.IGNORECASE)
    ]
    assert not naming


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_is_one_small_room(family):
    lines = {
        path.name: len(path.read_text().splitlines()) for path in (ROOT / f"plugins/lorakit_{family}").glob("*.py")
    }
    assert lines.pop("size.py", 0) <= 200, lines  # what it weighs and costs: figures, of no account here
    assert max(lines.values()) <= 250, lines
    assert sum(lines.values()) <= 390, lines  # about 330, as the house plan says


@pytest.mark.parametrize("example", ["lorakit-hello", "lorakit-lowvram"])
def test_an_example_plugin_is_small_with_its_tests(example):
    folder = ROOT / "docs" / "examples" / example
    written = [path for path in folder.rglob("*") if path.suffix in (".py", ".toml", ".md") and path.is_file()]
    written = [path for path in written if "cache" not in str(path.relative_to(folder))]
    assert len(written) >= 6
    assert sum(len(path.read_text(encoding="utf-8").splitlines()) for path in written) <= 400


def test_files_and_functions_stay_short():
    for path in SOURCES:
        text = path.read_text(encoding="utf-8")
        assert len(text.splitlines()) <= 330, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                assert length <= 60, f"{path}:{node.lineno} {node.name} has {length} lines"


def test_every_file_says_what_it_is():
    for path in SOURCES:
        assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), path


def test_public_names_are_listed_and_found():
    assert lorakit.__all__ == sorted(lorakit.__all__)
    for name in lorakit.__all__:
        assert getattr(lorakit, name) is not None
    assert dir(lorakit) == lorakit.__all__


def test_public_names_of_the_modules_that_hosts_read_are_listed_and_explained():
    from lorakit import errors, events

    page = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    kinds = {name for name, what in vars(events).items() if isinstance(what, type) and issubclass(what, events.Event)}
    assert not [name for name in {*kinds, "KINDS", "VERBS", "VERSION", "Verb"} if f"`{name}`" not in page]
    assert not [name for name in lorakit.__all__ if f"| `{name}` |" not in page]
    public = [getattr(lorakit, name) for name in lorakit.__all__ if name not in ("__version__", "hookimpl")]
    public += [what for what in vars(errors).values() if isinstance(what, type)]
    assert not [what for what in public if not what.__doc__]
    assert (ROOT / "core" / "lorakit" / "py.typed").is_file()


def test_the_schema_that_editors_use_has_every_section():
    from lorakit.config import schema
    from lorakit.settings import Settings

    for name in Settings.model_fields:
        assert f'"{name}"' in schema()
