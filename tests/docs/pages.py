"""The pages of the documentation, and what they are made of: links, code blocks, command lines."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
FENCE = re.compile(r"^(?:<!-- (?P<mark>[^\n]*) -->\n+)?```(?P<kind>\w*)\n(?P<text>.*?)^```$", re.M | re.S)
INLINE = re.compile(r"`(lorakit [^`]+)`")
LINK = re.compile(r"!?\[[^\]]*\]\((?P<target>[^)\s]+)\)")
CUT = {">", ">>", "|", "&&", "#", "..."}


@dataclass(frozen=True)
class Block:
    """A fenced block; `mark` is the comment right above it."""

    page: Path
    kind: str
    text: str
    mark: str

    @property
    def name(self) -> str:
        """Where it is, for a test's name."""
        place = self.page.read_text(encoding="utf-8").index(self.text)
        return f"{self.page.relative_to(ROOT)}:{self.page.read_text(encoding='utf-8')[:place].count(chr(10)) + 1}"

    @property
    def file(self) -> str:
        """The name of the file that the block is, if it is one."""
        return self.mark.removeprefix("file: ") if self.mark.startswith("file: ") else ""


def blocks(*kinds: str) -> list[Block]:
    """Every fenced block of these kinds."""
    return [
        Block(page, match["kind"], match["text"], match["mark"] or "")
        for page in PAGES
        for match in FENCE.finditer(page.read_text(encoding="utf-8"))
        if match["kind"] in kinds
    ]


def prose(page: Path) -> str:
    """The page without its fenced blocks."""
    return FENCE.sub("", page.read_text(encoding="utf-8"))


def command_lines() -> Iterator[tuple[str, list[str]]]:
    """Every `lorakit ...` that a block shows, as (where, arguments)."""
    for block in blocks("sh"):
        for line in block.text.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words and words[0].rpartition("/")[2] == "lorakit":
                yield block.name, _until_cut(words[1:])


def inline_commands() -> Iterator[tuple[str, list[str]]]:
    """Every `lorakit ...` in running text, as (where, arguments)."""
    for page in PAGES:
        for match in INLINE.finditer(prose(page)):
            yield str(page.relative_to(ROOT)), _until_cut(shlex.split(match[1])[1:])


def _until_cut(words: list[str]) -> list[str]:
    end = next((place for place, word in enumerate(words) if word in CUT), len(words))
    return words[:end]


def slugs(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub names them."""
    found = re.findall(r"^#+ +(.+)$", prose(page), re.M)
    return {re.sub(r"[^\w\- ]", "", one.lower()).replace(" ", "-") for one in found}
