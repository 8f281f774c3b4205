"""What the pages list is what the code has: settings, events, hooks, the family's facts, the Makefile's targets."""

import inspect
import re

import pytest
from click.testing import CliRunner

from lorakit import family, hooks, registry
from lorakit.cli import build
from lorakit.config import Layer
from lorakit.config import build as request_of
from lorakit.kit import Kit
from tests.docs import reference
from tests.docs.pages import PAGES, ROOT, prose


@pytest.mark.parametrize("page", reference.MADE)
def test_made_parts_are_what_the_code_says(page):
    text = (reference.DOCS / page).read_text(encoding="utf-8")
    assert text.count(reference.BEGIN) == text.count(reference.END) == 1
    assert text == reference.remade(page, text), "run python -m tests.docs.reference"


def test_every_hook_is_shown_and_has_an_example():
    text = (reference.DOCS / "hooks.md").read_text(encoding="utf-8")
    names = [*hooks.NOUN_HOOKS, *hooks.RULE_HOOKS, "check_plan", "on_event"]
    assert len(names) == 8
    for name in names:
        assert f"\n### {name}\n" in text
    examples = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    missing = [name for name in names if f"def {name}(" not in examples]
    assert not missing


def test_every_fact_and_part_of_a_family_is_explained():
    text = (ROOT / "docs" / "plugins" / "index.md").read_text(encoding="utf-8")
    facts = [name for name in family.Family.__annotations__ if not name.startswith("_")]
    methods = sorted(family.Family.__abstractmethods__)
    nouns = [name for name, _ in inspect.getmembers(registry.Registry, inspect.isfunction) if not name.startswith("_")]
    assert len(facts) > 10
    assert len(methods) == 4
    missing = [name for name in (*facts, *methods, *(f"registry.{noun}" for noun in nouns)) if f"`{name}`" not in text]
    assert not missing


def test_settings_named_in_the_pages_exist():
    known = reference.names()
    sections = "|".join(sorted(name.partition(".")[0] for name in known if "." in name))
    named = {
        (page.name, name)
        for page in PAGES
        for name in re.findall(rf"`((?:{sections})\.(?!py\b)[a-z_]+)(?: = [^`]*)?`", prose(page))
    }
    assert len(named) > 30
    assert not {(page, name) for page, name in named if name not in known}


def test_settings_given_in_the_pages_are_accepted():
    found = 0
    for page in PAGES:
        for key, value in re.findall(r"`(\w+\.\w+) = ([^`]+)`", prose(page)):
            if key in reference.names() and "..." not in value:
                request_of([Layer(_table(key, value), page.name)])
                found += 1
    assert found


def _table(key, value):
    import tomli

    return tomli.loads(f"{key} = {value}") | {"family": "qwen"}


def test_make_targets_of_the_readme_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert text.index("make demo") < text.index("pip install"), "the two commands come first"
    named = {name for page in PAGES for name in re.findall(r"\bmake ([a-z]+)`", page.read_text(encoding="utf-8"))}
    assert {"demo", "test"} <= named
    for name in named:
        assert re.search(rf"^{name}:", makefile, re.M), f"the Makefile has no target {name}"


def test_the_tree_of_the_readme_is_the_repository():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    tree = text[text.index("## The repository") :]
    named = re.findall(r"^([\w.][\w./-]*) {2,}\S", tree[: tree.index("\n## ")], re.M)
    assert len(named) > 10
    assert not [name for name in named if not (ROOT / name).exists()]
    rooms = {path.name for path in ROOT.iterdir() if path.is_dir() and any(path.rglob("*.py"))}
    rooms -= {name for name in rooms if name.startswith(".")} | {"runs", "dist", "build"}
    assert rooms <= {name.strip("/").partition("/")[0] for name in named}


def test_exit_codes_of_the_readme():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for code in ("0", "1", "2", "130"):
        assert f"| {code} |" in text


def test_every_command_is_named_in_the_readme():
    kit = Kit()
    group = build(kit)
    assert CliRunner().invoke(group, ["--help"], obj=kit).exit_code == 0
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert not [name for name in group.commands if f"`lorakit {name}" not in text]
