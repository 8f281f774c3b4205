"""A foreign file as flat keys with their lines: YAML or JSON, TOML, or the command lines of a shell script."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import tomli

from lorakit.errors import ConfigError
from lorakit.importers.commands import Command, commands
from lorakit.importers.leaf import Leaf, joined

LARGEST = 256 * 1024  # bytes; a configuration is a few thousand, and what is not one shall not be parsed
YAML, TOML = (".yaml", ".yml", ".json"), (".toml",)


@dataclass(frozen=True)
class Document:
    """One file; what it holds is parsed when first asked for, by the ending of its name."""

    path: Path
    text: str

    @property
    def name(self) -> str:
        """The file's name, for messages."""
        return str(self.path)

    @cached_property
    def leaves(self) -> tuple[Leaf, ...]:
        """The keys of a YAML, JSON or TOML file in their order; none of a script."""
        if self.path.suffix.lower() in YAML:
            from lorakit.importers.yaml_text import leaves

            return tuple(leaves(self.text, self.name))
        if self.path.suffix.lower() in TOML:
            return tuple(_toml(self.text, self.name))
        return ()

    @cached_property
    def commands(self) -> tuple[Command, ...]:
        """The command lines of a script; none of another file."""
        if self.path.suffix.lower() in YAML + TOML:
            return ()
        return tuple(commands(self.text, self.name))

    def has(self, *patterns: str) -> bool:
        """Whether any key matches one of the regular expressions from its beginning."""
        return any(re.match(pattern, leaf.key) for pattern in patterns for leaf in self.leaves)


def read(path: Path) -> Document:
    """The file at `path`, or a ConfigError where it is none, too large, or no text."""
    try:
        if path.is_dir():
            raise ConfigError(f"{path} is a folder, not a file", fix="Name the configuration in it.")
        size = path.stat().st_size
        if size > LARGEST:
            why = f"it has {size:,} bytes, and a configuration has a few thousand (at most {LARGEST:,} are read)"
            raise ConfigError(f"{path} is no configuration", why=why, fix="Check the path.")
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(f"there is no configuration file {path}", fix="Check the path.") from None
    except (OSError, ValueError) as error:  # ValueError: not UTF-8, or a path that no system takes
        raise ConfigError(f"{path} cannot be read", why=str(error), fix="It must be a UTF-8 text file.") from error
    return Document(path, text)


def _toml(text: str, name: str) -> Iterator[Leaf]:
    try:
        table = tomli.loads(text)
    except (tomli.TOMLDecodeError, RecursionError) as error:
        why = str(error) if isinstance(error, tomli.TOMLDecodeError) else "it is nested too deeply"
        raise ConfigError(f"{name} is not valid TOML", why=why, fix="Mend that line.") from error
    lines = _Lines(text)
    yield from _flat(table, "", lines)


def _flat(table: Mapping[str, Any], prefix: str, lines: _Lines) -> Iterator[Leaf]:
    for key, value in table.items():
        path = joined(prefix, key)
        if isinstance(value, dict) and value:
            yield from _flat(value, path, lines)
        elif isinstance(value, list) and value and all(isinstance(one, dict) for one in value):
            for place, one in enumerate(value):
                yield from _flat(one, f"{path}[{place}]", lines)
        else:
            yield Leaf(path, value, lines.next(key))


class _Lines:
    """Where keys stand, which tomli does not tell: each is looked for below the one of its name before it."""

    def __init__(self, text: str) -> None:
        self._found: dict[str, Iterator[int]] = {}
        self._text = text

    def next(self, key: str) -> int:
        """The line of the next `key = ...`, 0 where it is written in another way."""
        if key not in self._found:
            pattern = re.compile(rf"^[ \t]*[\"']?{re.escape(key)}[\"']?[ \t]*=", re.M)
            starts = (self._text.count("\n", 0, found.start()) + 1 for found in pattern.finditer(self._text))
            self._found[key] = starts
        return next(self._found[key], 0)
