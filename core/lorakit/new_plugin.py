"""A new plugin's package, written from the templates that lorakit ships; it passes its own tests as it is."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Container
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lorakit.errors import ConfigError, RunError

Kind = Literal["family", "rules"]
TEMPLATES = Path(__file__).parent / "templates"
NAME = re.compile(r"[a-z][a-z0-9]*(?:_[a-z0-9]+)*")
LONGEST = 40


@dataclass(frozen=True, slots=True)
class Naming:
    """What a plugin and its parts are called: `acme`, and in files `lorakit-acme`, `lorakit_acme` and `Acme`."""

    name: str

    @property
    def distribution(self) -> str:
        """What pip calls it."""
        return f"lorakit-{self.name}".replace("_", "-")

    @property
    def package(self) -> str:
        """What Python calls it."""
        return f"lorakit_{self.name}"

    def filled(self, text: str) -> str:
        """A template's text or path with the names in it."""
        words = {
            "distribution": self.distribution,
            "package": self.package,
            "name": self.name,
            "Class": "".join(part.capitalize() for part in self.name.split("_")),
        }
        for word, value in words.items():
            text = text.replace(f"{{{{ {word} }}}}", value)
        return text

    def path(self, template: Path) -> Path:
        """Where a template's text belongs."""
        names = {"package": self.package, "test_plugin.py": f"test_{self.name}.py"}
        return Path(*(names.get(part, part) for part in template.with_suffix("").parts))


def named(text: str, taken: Container[str]) -> Naming:
    """The names of a plugin called `text`, with or without `lorakit-`; ConfigError where it cannot be called so."""
    name = text.replace("-", "_").removeprefix("lorakit_")
    if not NAME.fullmatch(name) or len(name) > LONGEST:
        raise ConfigError(
            f"'{text}' is no name for a plugin",
            where="NAME",
            fix=f"Use small letters, digits and hyphens, a letter first, {LONGEST} at most.",
        )
    if name in taken:
        raise ConfigError(
            f"there is a plugin, a family or a command '{name}' already", where="NAME", fix="Choose another name."
        )
    return Naming(name)


def write(naming: Naming, kind: Kind, folder: Path) -> list[Path]:
    """Write the package as a new folder in `folder`, whole or not at all; its files."""
    place = folder / naming.distribution
    if place.exists() or place.is_symlink():
        raise ConfigError(f"there is something at {place} already", fix="Choose another name, or another --output.")
    root = TEMPLATES / kind
    try:
        with tempfile.TemporaryDirectory(prefix=f".{place.name}.", dir=folder) as scratch:
            aside = Path(scratch) / place.name
            for template in sorted(root.rglob("*.template")):
                file = aside / naming.path(template.relative_to(root))
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(naming.filled(template.read_text(encoding="utf-8")), encoding="utf-8")
            aside.rename(place)
    except OSError as error:
        raise RunError(f"{place} cannot be written", where="--output", why=str(error)) from error
    return sorted(path for path in place.rglob("*") if path.is_file())
