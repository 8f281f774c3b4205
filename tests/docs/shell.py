"""The shell blocks of the pages as command lines: what a line sets, runs, and writes."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

NOT_RUN, LEAVES = "not run: ", re.compile(r"leaves with (\d+): \S.{10,}")
PLACED = re.compile(r"([A-Z][A-Z_]*)=(.*)", re.S)
MORE_THAN_A_LINE = {"|", "||", "&", "&&", ";", "<", ">>", "$", "`"}


@dataclass(frozen=True)
class Line:
    """One command: the variables that it is given, lorakit's arguments, and the file that its output goes to."""

    text: str
    environment: Mapping[str, str]
    words: tuple[str, ...]
    output: str = ""

    @property
    def command(self) -> str:
        """Which of lorakit's commands it is; nothing where it is none."""
        rest = list(self.words)
        while rest and rest[0] in ("--plugin", "--without"):
            del rest[:2]
        return rest[0] if rest and not rest[0].startswith("-") else ""

    @property
    def written(self) -> list[str]:
        """The files that it says it writes."""
        named = [one for before, one in pairwise(self.words) if before in ("-o", "--html")]
        return [*named, self.output] if self.output else named


def lines(text: str, where: str) -> list[Line]:
    """Every command of a block, in order; ValueError where one cannot be run here and the block does not say so."""
    joined = text.replace("\\\n", " ").splitlines()
    return [_read(line, where) for line in joined if shlex.split(line, comments=True)]


def _read(text: str, where: str) -> Line:
    words, environment, output = shlex.split(text, comments=True), dict[str, str](), ""
    while words and (placed := PLACED.fullmatch(words[0])):
        environment[placed[1]] = placed[2]
        del words[0]
    if len(words) > 2 and words[-2] == ">":
        output = words[-1]
        del words[-2:]
    if not words or words[0] != "lorakit" or MORE_THAN_A_LINE & {*words}:
        raise ValueError(
            f"{where}: '{text}' is not run by the tests: mark its block with the reason, <!-- not run: ... -->"
        )
    return Line(text, environment, tuple(words[1:]), output)


def expected(mark: str, where: str) -> int:
    """The exit code that a block's lines leave with: 0, or what the mark above them says, with a reason."""
    if not mark:
        return 0
    found = LEAVES.fullmatch(mark)
    if found is None:
        raise ValueError(f"{where} has an unknown mark: {mark}")
    return int(found[1])
