"""Pages of HTML that need nothing else: a template of a package, filled in with everything escaped, written whole."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorakit.errors import DataError
from lorakit.secret import redacted

if TYPE_CHECKING:
    import jinja2


def rendered(package: str, name: str, facts: Mapping[str, Any]) -> str:
    """The page that the template `name` of a package makes of `facts`, without secrets."""
    return redacted(_template(package, name).render(facts))


def write(text: str, file: Path, where: str) -> None:
    """Write a page whole, or raise DataError; `where` is the option that named the file."""
    aside = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        aside.write_text(text, encoding="utf-8", errors="replace")
        aside.replace(file)
    except (OSError, ValueError) as error:
        with suppress(OSError, ValueError):
            aside.unlink(missing_ok=True)
        raise DataError(f"the page {file} cannot be written", where=where, why=str(error)) from error


@lru_cache(maxsize=8)
def _template(package: str, name: str) -> jinja2.Template:
    import jinja2

    text = resources.files(package).joinpath(name).read_text(encoding="utf-8")
    made = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    return made.from_string(text)
