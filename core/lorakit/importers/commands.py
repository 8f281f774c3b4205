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
LAUNCHERS = {"accelerate", "launch", "python", "python3", "uv", "run", "torchrun", "exec", "time", "nohup", "env"}


@dataclass(frozen=True, slots=True)
class Command:
    """One Python script that is started: its name without folder and ending, and what it is given."""

    script: str
    line: int
    arguments: tuple[Leaf, ...]
    launcher: tuple[Leaf, ...] = ()
    strays: tuple[str, ...] = ()


def commands(text: str, name: str) -> Iterator[Command]:
    """Every start of a Python script, with variables that the file sets filled in, or a ConfigError with a line."""
    variables: dict[str, str] = {}
    for line, words in _lines(text, name):
        words = [VARIABLE.sub(lambda found: variables.get(found[1] or found[2], found[0]), word) for word in words]
        for part in _parts(words):
            rest = list(part)
            if rest and rest[0] in ("export", "set", "$env"):
                rest.pop(0)
            while rest and (found := ASSIGNED.fullmatch(rest[0])):
                variables[found[1]] = found[2]
                rest.pop(0)
            command = _command(rest, line)
            if command:
                yield command


def _lines(text: str, name: str) -> Iterator[tuple[int, list[str]]]:
    """The words of every line, joined with those that it goes on in."""
    joined, first = "", 0
    for number, line in enumerate(text.splitlines(), 1):
        first = first or number
        joined += line
        if CONTINUED.search(joined) and not joined.lstrip().startswith("#"):
            joined = CONTINUED.sub(" ", joined)
            continue
        try:
            words = shlex.split(joined, comments=True)
        except ValueError:  # a quotation that is closed further down, or never
            if len(joined) > 8192:
                break
            joined += "\n"
            continue
        yield first, words
        joined, first = "", 0
    if joined.strip():
        try:
            yield first, shlex.split(joined, comments=True)
        except ValueError as error:
            why = f"line {first}: {str(error).lower()}"
            raise ConfigError(f"{name} is not a shell script", why=why, fix="Mend that line.") from None


def _parts(words: Sequence[str]) -> Iterator[list[str]]:
    part: list[str] = []
    for word in words:
        if word in BETWEEN:
            yield part
            part = []
        else:
            part.append(word)
    yield part


def _command(words: list[str], line: int) -> Command | None:
    """The start of a script: `[accelerate launch --options] script.py --options`, `-m package.module`, or flags alone."""
    if words and words[0].startswith("--"):
        return Command("", line, tuple(_arguments(words, line)[0]))
    for place, word in enumerate(words):
        if word.endswith(".py"):
            script, rest = word, words[place + 1 :]
        elif word == "-m" and place + 1 < len(words):
            script, rest = words[place + 1], words[place + 2 :]
        else:
            continue
        before = [one for one in words[:place] if one not in LAUNCHERS]
        launcher, _ = _arguments(before, line)
        arguments, strays = _arguments(rest, line)
        stem = script.replace("\\", "/").rpartition("/")[2].removesuffix(".py").rpartition(".")[2]
        return Command(stem, line, tuple(arguments), tuple(launcher), tuple(strays))
    return None


def _arguments(words: Sequence[str], line: int) -> tuple[list[Leaf], list[str]]:
    """Flags with their values: True for none, a list for several; an earlier one of the same name is shadowed."""
    found: list[tuple[str, list[str]]] = []
    strays: list[str] = []
    for word in words:
        if word.startswith("--") and len(word) > 2:
            flag, equals, value = word[2:].partition("=")
            found.append((flag.replace("-", "_"), [value] if equals else []))
        elif found:
            found[-1][1].append(word)
        else:
            strays.append(word)
    last = {flag: place for place, (flag, _) in enumerate(found)}
    leaves = [
        Leaf(flag, _meant(values), line, shadowed=last[flag] != place) for place, (flag, values) in enumerate(found)
    ]
    return leaves, strays


def _meant(values: list[str]) -> bool | str | list[str]:
    if not values:
        return True
    return values[0] if len(values) == 1 else values
