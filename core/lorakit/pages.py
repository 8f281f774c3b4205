"""Pages of HTML that need nothing else: a template of a package, filled in with everything escaped, written whole."""

from __future__ import annotations

import io
import os
import re
from base64 import b64encode
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
    from markupsafe import Markup

LARGEST = 768  # pixels of a picture's longer side on a page
SMALLEST = 192  # below which pixels are enlarged, so that they can be seen


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


def picture(path: Path | None, largest: int = LARGEST) -> str:
    """A picture as a data address, at a size for the page; empty where there is none, or none that can be read."""
    try:
        stat = path.stat() if path is not None else None
    except OSError:
        stat = None
    return _inlined(path, stat.st_size, stat.st_mtime_ns, largest) if path is not None and stat is not None else ""


@lru_cache(maxsize=512)
def _inlined(path: Path, size: int, changed: int, largest: int) -> str:
    """The same for a file of this size that was changed at this time, so that a page made anew reads it once."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as opened:
            image = opened.convert("RGB")
    except (OSError, ValueError, SyntaxError, UnidentifiedImageError):
        return ""
    longest = max(image.size)
    if longest < SMALLEST:
        factor = SMALLEST // longest
        image = image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    image.thumbnail((largest, largest))
    held = io.BytesIO()
    image.save(held, "PNG" if longest < SMALLEST else "WEBP", quality=85)
    kind = "png" if longest < SMALLEST else "webp"
    return f"data:image/{kind};base64,{b64encode(held.getvalue()).decode()}"


def _coded(text: str) -> Markup:
    """The text, escaped, with what stands between backquotes as code."""
    from markupsafe import Markup, escape

    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))


@lru_cache(maxsize=8)
def _template(package: str, name: str) -> jinja2.Template:
    import jinja2

    text = resources.files(package).joinpath(name).read_text(encoding="utf-8")
    made = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    made.filters["coded"] = _coded
    return made.from_string(text)
