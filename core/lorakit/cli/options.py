"""The options that `train` and `plan` share, and what they ask for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from lorakit.errors import ConfigError
from lorakit.kit import Kit

if TYPE_CHECKING:  # `lorakit --help` shall not wait for the configuration models
    from lorakit.config import Layer
    from lorakit.request import Request

Function = TypeVar("Function", bound=Callable[..., Any])

PLAIN = {
    "family": "Model family; `lorakit families` lists them.",
    "variant": "Published model of the family.",
    "preset": "Preset to start from; `lorakit presets` lists them, `none` uses none.",
    "trigger": "Word that calls what is taught.",
    "name": "Name of the run and its file.",
    "output": "Folder that runs are made in.",
}
"""Options that are top settings of the same name."""


def settings(function: Function) -> Function:
    """Add every option that makes up a request."""
    options = [
        *(click.option(f"--{name}", metavar=name.upper(), help=text) for name, text in PLAIN.items()),
        click.option("--source", metavar="MODEL", help="Hub repository, local model folder, or toy."),
        click.option("--data", "-d", multiple=True, metavar="DIR", help="Folder of pictures; may be given again."),
        click.option(
            "--config",
            "-c",
            metavar="FILE",
            type=click.Path(path_type=Path),
            help="TOML with settings, or another trainer's file.",
        ),
        click.option("--set", "-s", "sets", multiple=True, metavar="KEY=VALUE", help="One setting, train.epochs=5."),
    ]
    for option in reversed(options):
        function = option(function)
    return function


gpus = click.option("--gpus", metavar="N", type=click.IntRange(min=1), help="GPUs that train together, by torchrun.")
"""For commands that train, or tell of training."""


def request(kit: Kit, options: dict[str, Any]) -> Request:
    """What the options ask for; `--set` overrides options, options override the file, the file the preset."""
    return kit.request(*layers(kit, options.pop("config"), options.pop("sets"), options))


def layers(kit: Kit, file: Path | None, sets: Sequence[str], options: dict[str, Any]) -> list[Layer]:
    """One layer for each place in which something was said, the strongest last."""
    from lorakit.config import Layer

    found = _file(kit, file, options) if file else []
    for name in PLAIN:
        if options.get(name) is not None:
            found.append(Layer({name: options[name]}, f"--{name}"))
    if options.get("source"):
        found.append(Layer({"model": {"source": options["source"]}}, "--source"))
    if options.get("data"):
        found.append(Layer({"data": [{"folder": folder} for folder in options["data"]]}, "--data"))
    return found + changes(sets, options.get("gpus"))


def _file(kit: Kit, file: Path, options: dict[str, Any]) -> list[Layer]:
    """A TOML of lorakit's own, whatever it is called, or what an importer makes of another trainer's file."""
    from lorakit import config
    from lorakit.config import Layer
    from lorakit.importers import importer_of, read
    from lorakit.importers.document import YAML
    from lorakit.settings import Settings

    def imported() -> list[Layer]:
        return kit.imported(file, family=options.get("family"), variant=options.get("variant")).layers()

    if file.is_dir() or (file.suffix.lower() in YAML and file.exists()):
        return imported()
    try:
        table = config.read_toml(file)
    except ConfigError:
        if file.is_file() and importer_of(read(file), kit.shelves.importers):
            return imported()
        raise
    if table.keys() <= Settings.model_fields.keys() or not importer_of(read(file), kit.shelves.importers):
        return [Layer(table, str(file))]
    return imported()


def changes(sets: Sequence[str], gpus: int | None = None) -> list[Layer]:
    """What `--gpus` and each `--set` say."""
    if not sets and gpus is None:
        return []
    from lorakit import config
    from lorakit.config import Layer

    said = [] if gpus is None else [Layer({"train": {"gpus": gpus}}, "--gpus")]
    return said + [Layer(config.parse_set(text), f"--set {text}") for text in sets]
