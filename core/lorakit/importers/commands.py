"""The command lines of a shell script, as far as a training script is started by one; nothing is run."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from lorakit.errors import ConfigError
from lorakit.importers.leaf import Leaf

CONTINUED = re.compile(r"[ \t]*[\\^`][ \t]*$")  # by a shell, by cmd.exe, by PowerShell
ASSIGNED = re.compile(r"([A-Za-z_]\w*)=(.*)", re.S)
VARIABLE = re.compile(r"\$(?:\{(\w+)\}|(\w+))")
BETWEEN = {"&&", "||", ";", "|", "&"}
LONGEST = 8192  # characters in quotation marks
LAUNCHERS = {"accelerate", "launch", "python", "python3", "uv", "run", "torchrun", "exec", "time", "nohup", "env"}


@dataclass(frozen=True, slots=True)
class Command:
    """One Python script that is started: its name without folder and ending, and what it is given."""

    script: str
    line: int
    arguments: tuple[Leaf, ...]
    launcher: tuple[Leaf, ...] = ()
    strays: tuple[str, ...] = ()


Word = tuple[str, int]
"""A word and its line."""


def commands(text: str, name: str) -> Iterator[Command]:
    """Every start of a Python script, with variables that the file sets filled in, or a ConfigError with a line."""
    variables: dict[str, str] = {}
    for words in _lines(text, name):
        filled = [
            (VARIABLE.sub(lambda one: variables.get(one[1] or one[2], one[0]), word), line) for word, line in words
        ]
        for part in _parts(filled):
            rest = list(part)
            if rest and rest[0][0] in ("export", "set"):
                rest.pop(0)
            while rest and (found := ASSIGNED.fullmatch(rest[0][0])):
                variables[found[1]] = found[2]
                rest.pop(0)
            command = _command(rest)
            if command:
                yield command


def _lines(text: str, name: str) -> Iterator[list[Word]]:
    """The words of every line together with those of the lines that it goes on in."""
    words: list[Word] = []
    open_text, first = "", 0
    for number, line in enumerate([*text.splitlines(), ""], 1):
        goes_on = CONTINUED.search(line) and not line.lstrip().startswith("#")
        piece = open_text + (CONTINUED.sub("", line) if goes_on else line)
        first = first if open_text else number
        try:
            words += [(word, first) for word in shlex.split(piece, comments=True)]
            open_text = ""
        except ValueError as error:  # a quotation that is closed further down, or never
            if len(piece) > LONGEST or number > text.count("\n") + 1:
                raise ConfigError(
                    f"{name} is not a shell script", why=f"line {first}: {str(error).lower()}", fix="Mend that line."
                ) from None
            open_text = f"{piece}\n"
            continue
        if not goes_on:
            yield words
            words = []
    yield words


def _parts(words: Sequence[Word]) -> Iterator[list[Word]]:
    part: list[Word] = []
    for word in words:
        if word[0] in BETWEEN:
            yield part
            part = []
        else:
            part.append(word)
    yield part


def _command(words: list[Word]) -> Command | None:
    """The start of a script (`[accelerate launch ...] script.py ...` or `-m package.module ...`), or flags alone."""
    if words and words[0][0].startswith("--"):
        return Command("", words[0][1], tuple(_arguments(words)[0]))
    for place, (word, line) in enumerate(words):
        if word.endswith(".py"):
            script, rest = word, words[place + 1 :]
        elif word == "-m" and place + 1 < len(words):
            script, rest = words[place + 1][0], words[place + 2 :]
        else:
            continue
        launcher, _ = _arguments([one for one in words[:place] if one[0] not in LAUNCHERS])
        arguments, strays = _arguments(rest)
        stem = script.replace("\\", "/").rpartition("/")[2].removesuffix(".py").rpartition(".")[2]
        return Command(stem, line, tuple(arguments), tuple(launcher), tuple(strays))
    return None


def _arguments(words: Sequence[Word]) -> tuple[list[Leaf], list[str]]:
    """Flags with their values: True for none, a list for several; an earlier one of the same name is shadowed."""
    found: list[tuple[str, list[str], int]] = []
    strays: list[str] = []
    for word, line in words:
        if re.match(r"--[^=\s]", word):
            flag, equals, value = word[2:].partition("=")
            found.append((flag.replace("-", "_"), [value] if equals else [], line))
        elif found:
            found[-1][1].append(word)
        else:
            strays.append(word)
    last = {flag: place for place, (flag, _, _) in enumerate(found)}
    leaves = [
        Leaf(flag, _meant(values), line, shadowed=last[flag] != place)
        for place, (flag, values, line) in enumerate(found)
    ]
    return leaves, strays


def _meant(values: list[str]) -> bool | str | list[str]:
    if not values:
        return True
    return values[0] if len(values) == 1 else values
