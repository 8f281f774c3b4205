"""The nouns that plugins bring: families, schedulers, quantizers, optimizers, importers, trackers, presets."""

from __future__ import annotations

import difflib
import importlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from lorakit.errors import ConfigError, PluginError
from lorakit.family import Family
from lorakit.sections import Section

Item = TypeVar("Item")
BARE = re.compile(r"[A-Za-z0-9_-]+")
"""Names of tables that TOML and `--set` take without quotes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Something the engine loads when a plan names it; `load` is `"package.module:attribute"`, so torch stays out."""

    name: str
    summary: str
    load: str
    offers: tuple[str, ...] = ()
    """Named modes of the part: a scheduler's ways of drawing timesteps."""
    settings: tuple[str, ...] = ()
    """Optional settings of its section that the part reads; others may not be set with it."""
    requires: tuple[str, ...] = ()
    """Importable packages that the part needs."""
    install: str = ""
    """What pip installs to have them, where it is called otherwise."""
    held: float | None = None
    """Bytes: of a weight under a quantizer, of state for a trained parameter under an optimizer; None is unknown."""
    restoring: float = 0.0
    """Bytes that a quantizer reads and writes to restore one weight, each time that it is used."""
    skips: bool = False
    """Whether an optimizer leaves everything as it is where its `found_inf` is 1, as torch's fused ones do."""
    stays: bool = False
    """Whether a quantizer's layers must lie whole on the device from the start: they never wait, nor are sharded."""
    captured: bool = False
    """Whether a CUDA graph may hold a pass through a quantizer's layers: nothing in them waits for the host."""
    kernels: bool = False
    """Whether a quantizer's layers leave it to `speed.products` who multiplies."""

    @property
    def remedy(self) -> str:
        """The command that brings what the part needs."""
        return f"pip install {self.install or ' '.join(self.requires)}"

    def resolve(self) -> Any:
        """The attribute that `load` names."""
        module, _, attribute = self.load.partition(":")
        try:
            return getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError) as error:
            raise PluginError(
                f"'{self.name}' cannot be loaded from {self.load}",
                why=str(error),
                fix=f"Install what it needs: {self.remedy}." if self.requires else "",
            ) from error


class Shelf(Mapping[str, Item], Generic[Item]):
    """Named things of one kind, each with the plugin that brought it, in order of name."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._items: dict[str, Item] = {}
        self._owners: dict[str, str] = {}

    def add(self, name: str, item: Item, owner: str) -> None:
        """Put `item` on the shelf; a name twice is a PluginError naming both plugins."""
        if name in self._items:
            raise PluginError(
                f"the {self.kind} '{name}' is brought by two plugins, {self._owners[name]} and {owner}",
                fix=f"Leave one out: `lorakit --without {owner} ...`.",
            )
        self._items[name], self._owners[name] = item, owner

    def owner(self, name: str) -> str:
        """The plugin that brought `name`."""
        return self._owners[name]

    def find(self, name: str, where: str = "") -> Item:
        """The thing called `name`, or a ConfigError that suggests the nearest names."""
        if name in self._items:
            return self._items[name]
        near = difflib.get_close_matches(name, self._items, n=1)
        hint = f"Did you mean '{near[0]}'? " if near else ""
        known = ", ".join(self) or f"none: no installed plugin brings a {self.kind}"
        raise ConfigError(f"there is no {self.kind} '{name}'", where=where, fix=f"{hint}Known: {known}.")

    def __getitem__(self, name: str) -> Item:
        return self._items[name]

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._items))

    def __len__(self) -> int:
        return len(self._items)


@dataclass
class Shelves:
    """Every shelf of a Kit."""

    families: Shelf[Family] = field(default_factory=lambda: Shelf("family"))
    schedulers: Shelf[Part] = field(default_factory=lambda: Shelf("scheduler"))
    quantizers: Shelf[Part] = field(default_factory=lambda: Shelf("quantization"))
    optimizers: Shelf[Part] = field(default_factory=lambda: Shelf("optimizer"))
    importers: Shelf[Part] = field(default_factory=lambda: Shelf("importer"))
    trackers: Shelf[Part] = field(default_factory=lambda: Shelf("tracker"))
    presets: Shelf[Path] = field(default_factory=lambda: Shelf("preset"))
    settings: Shelf[type[Section]] = field(default_factory=lambda: Shelf("settings"))
    """By the name of the plugin whose they are."""


class Registry:
    """What a plugin's `register` hook writes to; it knows which plugin is writing."""

    def __init__(self, shelves: Shelves, owner: str) -> None:
        self._shelves, self._owner = shelves, owner

    def family(self, family: Family) -> None:
        """Add a family; its facts must be complete."""
        missing = [name for name in Family.__annotations__ if not hasattr(family, name) and not name.startswith("_")]
        if missing:
            raise PluginError(f"{self._owner}'s family {type(family).__name__} lacks {', '.join(missing)}")
        if family.default_variant not in family.variants:
            raise PluginError(f"{self._owner}'s default variant '{family.default_variant}' is not a variant")
        strange = [called for called, variant in family.known_as.items() if variant and variant not in family.variants]
        if strange:
            raise PluginError(f"{self._owner}'s family is known as '{strange[0]}' for a variant that it does not have")
        self._shelves.families.add(family.name, family, self._owner)

    def scheduler(self, part: Part) -> None:
        """Add a training objective with its sampler."""
        self._shelves.schedulers.add(part.name, part, self._owner)

    def quantizer(self, part: Part) -> None:
        """Add a way to hold the frozen base in fewer bits."""
        self._shelves.quantizers.add(part.name, part, self._owner)

    def optimizer(self, part: Part) -> None:
        """Add an optimizer."""
        self._shelves.optimizers.add(part.name, part, self._owner)

    def importer(self, part: Part) -> None:
        """Add a reader of another trainer's configurations; `part.load` names what gives an `Importer`."""
        self._shelves.importers.add(part.name, part, self._owner)

    def tracker(self, part: Part) -> None:
        """Add a place where runs are shown; `part.load` names what makes a `Tracker` of a folder and a plan."""
        self._shelves.trackers.add(part.name, part, self._owner)

    def settings(self, model: type[Section]) -> None:
        """Let runs say `[plugin.NAME]`, by this plugin's name, with the fields of `model`; each must have a default."""
        fault = ""
        if not BARE.fullmatch(self._owner):
            fault = "a table cannot be called like it: letters, digits, _ and - only"
        elif not (isinstance(model, type) and issubclass(model, Section)):
            fault = "they are no subclass of lorakit.Section"
        elif needed := [name for name, about in model.model_fields.items() if about.is_required()]:
            fault = f"{', '.join(needed)} has no default, so no run could leave it unsaid"
        if fault:
            raise PluginError(f"the settings of the plugin '{self._owner}' cannot be used", why=fault)
        self._shelves.settings.add(self._owner, model, self._owner)

    def presets(self, family: str, folder: Path) -> None:
        """Add every TOML file of `folder` as a preset `family/stem`."""
        if not folder.is_dir():
            raise PluginError(f"{self._owner} names a preset folder that does not exist: {folder}")
        for file in sorted(folder.glob("*.toml")):
            self._shelves.presets.add(f"{family}/{file.stem}", file, self._owner)
