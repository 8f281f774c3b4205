"""Hooks of the documentation's site: the pages at the repository's root belong to it, with their links turned."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
ABOVE = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")
NO_PAGE = re.compile(r"\[([^\]]*)\]\((?:LICENSE|Makefile|presets/|core/|plugins/lorakit\w*/)[^)]*\)")
"""Links to files of the repository that are no pages: their words stay."""


def on_files(files: Files, config: Any) -> Files:
    """Add the pages above this folder."""
    for name in ABOVE:
        text = (ROOT / name).read_text(encoding="utf-8")
        text = NO_PAGE.sub(r"\1", text.replace("](docs/", "]("))
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Turn links that lead out of this folder to where those pages are on the site."""
    for name in ABOVE:
        markdown = markdown.replace(f"](../{name}", f"]({name}")
    return markdown
