"""Every page can be followed: links lead somewhere, commands parse, code runs, and nothing is said of one machine."""

import re
import runpy
import shutil

import click
import pytest
import tomli

from lorakit.cli import build
from lorakit.config import Layer
from lorakit.config import build as request_of
from lorakit.kit import Kit
from tests.docs.pages import LINK, PAGES, ROOT, blocks, command_lines, inline_commands, prose, slugs

PYTHON = blocks("python")
TOML = blocks("toml")


def test_there_are_pages():
    names = {str(page.relative_to(ROOT)) for page in PAGES}
    assert {"README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/index.md", "docs/plugins/index.md"} <= names
    assert len(names) > 20


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for match in LINK.finditer(prose(page)):
        target, _, anchor = match["target"].partition("#")
        if "://" in target:
            continue
        path = (page.parent / target).resolve() if target else page
        assert path.exists(), f"{page.name} names {target}"
        if anchor:
            assert anchor in slugs(path), f"{page.name} names {match['target']}"


def test_every_page_is_reached_from_the_index():
    index = ROOT / "docs" / "index.md"
    linked = {(index.parent / match["target"]).resolve() for match in LINK.finditer(prose(index))}
    assert not [str(page) for page in PAGES if page.is_relative_to(index.parent) and page not in {index, *linked}]


# Commands -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def group():
    kit = Kit()
    return build(kit)


def _parse(group, words):
    """Parse a command line as click would, and run nothing."""
    context = group.make_context("lorakit", list(words))
    rest = [*getattr(context, "_protected_args", ()), *context.args]  # click 8 keeps the command apart
    if rest:
        name, command, arguments = group.resolve_command(context, rest)
        command.make_context(name, arguments, parent=context)


def test_command_lines_parse(group):
    found = list(command_lines())
    assert len(found) > 15
    for where, words in found:
        try:
            _parse(group, words)
        except click.exceptions.Exit:
            pass  # --version
        except click.ClickException as error:
            pytest.fail(f"{where}: lorakit {' '.join(words)}: {error.format_message()}")


def test_commands_in_running_text_exist(group):
    found = list(inline_commands())
    assert len(found) > 10
    for where, words in found:
        try:
            _parse(group, words)
        except click.MissingParameter:
            pass  # `lorakit resume` in running text names the command alone
        except click.ClickException as error:
            pytest.fail(f"{where}: lorakit {' '.join(words)}: {error.format_message()}")


def test_a_wrong_command_line_is_seen(group):
    with pytest.raises(click.ClickException):
        _parse(group, ["train", "--famly", "qwen"])
    with pytest.raises(click.ClickException):
        _parse(group, ["trian"])


# Code ---------------------------------------------------------------------------------------------------


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """An empty folder with the example pictures in `pictures` and every file that a page shows."""
    shutil.copytree(ROOT / "docs" / "examples" / "pictures", tmp_path / "pictures")
    for block in PYTHON:
        if block.file:
            (tmp_path / block.file).write_text(block.text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("block", PYTHON, ids=lambda block: block.name)
def test_python_blocks_run(block, workplace):
    if block.mark.startswith("not run: "):
        assert len(block.mark) > len("not run: ") + 10, "say why"
        compile(block.text, block.name, "exec")
    elif block.file:
        assert Kit(files=[workplace / block.file]).plugins[-1].name == block.file.removesuffix(".py")
    else:
        assert not block.mark, f"{block.name} has an unknown mark: {block.mark}"
        (workplace / "block.py").write_text(block.text, encoding="utf-8")
        runpy.run_path("block.py", run_name="__main__")


@pytest.mark.parametrize("block", TOML, ids=lambda block: block.name)
def test_toml_blocks_are_settings(block):
    request_of([Layer({"family": "qwen", **tomli.loads(block.text)}, block.name)])


# One machine --------------------------------------------------------------------------------------------

SUFFIXES = {".md", ".py", ".toml", ".yml", ".yaml", ".txt", ".json", ".cfg", ""}
ROOMS = ("core", "plugins", "presets", "tests", "docs", "benchmarks", ".ci", ".github")


def test_nothing_names_a_path_of_one_machine():
    here = re.compile("(?<![\\w.:])/(?:" + "work" + "|" + "tmp/v" + "|home|root|Users" + ")/")
    files = [path for path in ROOT.iterdir() if path.is_file()]
    files += [path for room in ROOMS for path in (ROOT / room).rglob("*") if path.is_file()]
    read = [path for path in files if path.suffix in SUFFIXES and not {"__pycache__", ".git"} & set(path.parts)]
    assert len(read) > 60
    found = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in read
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1)
        if here.search(line)
    ]
    assert not found
