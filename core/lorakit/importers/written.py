"""An imported run as the text of a TOML file, each setting with the key that it comes from."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from lorakit.importers.report import Imported
from lorakit.settings import Settings
from lorakit.version import __version__

COMMENT_AT = 40  # the column where comments stand, where the setting leaves room


def to_toml(imported: Imported) -> str:
    """The whole file; what was refused or is unknown stands at its end, as comments."""
    sources = {line.to.partition(" = ")[0]: line.key for line in imported.lines if line.to}
    lines = [f"# From {imported.file} ({imported.importer}), by lorakit import {__version__}."]
    lines += [f"# {finding}" for finding in map(_one_line, imported.findings)]
    order = list(Settings.model_fields)
    lines += _table(dict(sorted(imported.table.items(), key=lambda item: order.index(item[0]))), "", sources)
    lost = [line for line in imported.lines if line.fate in ("refused", "unknown")]
    if lost:
        lines += ["", "# Not carried over:", *(f"# {_one_line(str(line))}" for line in lost)]
    return "\n".join(lines) + "\n"


def _table(table: Mapping[str, Any], prefix: str, sources: Mapping[str, str]) -> Iterator[str]:
    sections = {key: value for key, value in table.items() if isinstance(value, dict)}
    for key, value in table.items():
        if key not in sections and key != "data":
            yield _setting(key, value, sources.get(f"{prefix}{key}", ""))
    for entry in table.get("data", ()):
        yield from ("", "[[data]]")
        yield from (_setting(key, value, "") for key, value in entry.items())
    for key, inner in sections.items():
        yield from ("", f"[{prefix}{key}]")
        yield from _table(inner, f"{prefix}{key}.", sources)


def _setting(key: str, value: Any, source: str) -> str:
    # JSON's strings are TOML's, but for the control character that JSON leaves bare
    setting = f"{key} = {json.dumps(value, ensure_ascii=False)}".replace("\x7f", "\\u007f")
    return f"{setting:{COMMENT_AT - 2}}  # {_one_line(source)}" if source else setting


def _one_line(text: str) -> str:
    """A comment's text: no line break and no control character may stand in it."""
    return " ".join("".join(one if one.isprintable() else " " for one in text).split())
