"""TOML, presets and `--set` to a `Request`: merged leaf by leaf, each leaf remembering where it was said."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_origin

import tomli
from pydantic import BaseModel, ValidationError

from lorakit.errors import ConfigError
from lorakit.family import Family
from lorakit.registry import Shelf
from lorakit.request import Origin, Request, Who
from lorakit.settings import Settings

Table = dict[str, Any]
LARGEST = 1 << 22  # bytes of a configuration: what is larger is something else, and takes minutes to refuse


@dataclass(frozen=True, slots=True)
class Layer:
    """Settings from one place; later layers override earlier ones, leaf by leaf, lists as a whole.

    `notes` are what a person should know of how the place was read.
    """

    table: Mapping[str, Any]
    where: str
    by: Who = "user"
    notes: tuple[str, ...] = ()


def read_toml(path: Path) -> Table:
    """The tables of a TOML file, or a ConfigError that names the line."""
    try:
        if path.stat().st_size > LARGEST:
            raise ConfigError(f"{path} is no configuration", why=f"it has {path.stat().st_size:,} bytes")
        return tomli.loads(path.read_bytes().decode("utf-8-sig"))
    except FileNotFoundError:
        raise ConfigError(f"there is no configuration file {path}", fix="Check the path.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read", why=str(error), fix="It must be a UTF-8 text file.") from error
    except tomli.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not valid TOML", why=str(error), fix="Mend that line.") from error


def parse_set(text: str) -> Table:
    """The table that one `--set a.b=value` means; the value is TOML, or plain text where it is not."""
    key, equals, value = text.partition("=")
    key = key.strip()
    if not equals or not key or not all(key.split(".")):
        raise ConfigError(f"--set {text!r} is not of the form key=value", fix="Write for example --set train.epochs=5.")
    try:
        parsed = tomli.loads(f"value = {value.strip()}")["value"]
    except tomli.TOMLDecodeError:
        parsed = value.strip()
    table: Table = {}
    inner = table
    *parents, leaf = key.split(".")
    for parent in parents:
        inner = inner.setdefault(parent, {})
    inner[leaf] = parsed
    return table


def load(layers: Sequence[Layer], families: Shelf[Family], presets: Shelf[Path]) -> Request:
    """The request that `layers` make together with their preset, which lies below all of them.

    The preset is the one named by the last layer that names one, else the family's default.
    """
    name, where = _last(layers, "family")
    if name is None:
        raise ConfigError("no model family is named", fix="Say --family NAME; `lorakit families` lists them.")
    if not isinstance(name, str):
        raise ConfigError(f"family = {name!r} is not a name", where=where, fix="Write it in quotes.")
    family = families.find(name, where)
    preset = _preset(layers, family, presets)
    below = [preset] if preset else []
    recipe = _recipe([*below, *layers], family)
    return build([*below, *recipe, *layers])


def build(layers: Sequence[Layer]) -> Request:
    """The request that `layers` make as they stand; every layer is checked by itself, so errors name their place."""
    merged: Table = {}
    origins: dict[str, Origin] = {}
    notes: list[str] = []
    for layer in (_translated(one, notes) for one in layers):
        notes.extend(layer.notes)
        check_keys(layer.table, Settings, layer.where)
        _forget_length(merged, layer.table, origins)
        _merge(merged, layer.table, origins, Origin(layer.by, layer.where))
    try:
        settings = Settings.model_validate_json(json.dumps(merged, default=str), strict=True)  # 16, not "16" or true
    except ValidationError as error:
        raise explain(error, origins) from None
    return Request(settings, origins, tuple(dict.fromkeys(notes)))


def over(base: Layer, changes: Sequence[Layer], family: Family) -> Request:
    """The request of a base that is already complete with changes over it; a recipe that they name comes between."""
    return build([base, *_recipe(changes, family), *changes])


def schema(plugins: Mapping[str, type[BaseModel]] | None = None) -> str:
    """The JSON schema of a run's TOML, for editors, with the settings of these plugins."""
    table = Settings.model_json_schema()
    table["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    table["title"] = "lorakit run"
    about = table["properties"]["plugin"]
    about["properties"] = {}
    for name, model in (plugins or {}).items():
        one = model.model_json_schema(ref_template=f"#/$defs/{name}.{{model}}")
        table["$defs"] |= {f"{name}.{inner}": more for inner, more in one.pop("$defs", {}).items()}
        about["properties"][name] = one
    return json.dumps(table, indent=1, sort_keys=True) + "\n"


def leaves(table: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    """Every setting of a nested table with its dotted path; lists are leaves."""
    for key, value in table.items():
        path = f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from leaves(value, f"{path}.")
        else:
            yield path, value


def _last(layers: Sequence[Layer], key: str) -> tuple[Any, str]:
    """The value that the strongest layer gives to a top setting, and where; None where nobody does."""
    return next(((layer.table[key], layer.where) for layer in reversed(layers) if key in layer.table), (None, ""))


def _preset(layers: Sequence[Layer], family: Family, presets: Shelf[Path]) -> Layer | None:
    asked, where = _last(layers, "preset")
    name = asked if isinstance(asked, str) else family.default_preset
    if name is None or name == "none":
        return None
    full = name if "/" in name else f"{family.name}/{name}"
    if full not in presets and not isinstance(asked, str):
        raise ConfigError(
            f"{family.title}'s usual preset {full} is not installed", fix="Say --preset none to go without one."
        )
    table = read_toml(presets.find(full, where))
    owner = table.get("family", full.partition("/")[0])
    if owner != family.name:
        raise ConfigError(
            f"the preset {full} is for the family '{owner}', not '{family.name}'",
            where=where,
            why="its values were chosen for another architecture",
            fix=f"Use --preset {family.name}/NAME or --family {owner}.",
        )
    return Layer({**table, "preset": full}, f"preset {full}", "preset")


def _recipe(layers: Sequence[Layer], family: Family) -> list[Layer]:
    """What the chosen sampling recipe says, as a layer above the preset and below the user's own settings."""
    found = [layer for layer in layers if isinstance(layer.table.get("sampling"), Mapping)]
    naming = next((layer for layer in reversed(found) if "recipe" in layer.table["sampling"]), None)
    if naming is None:
        return []
    name = naming.table["sampling"]["recipe"]
    if not isinstance(name, str) or name not in family.recipes:
        known = ", ".join(family.recipes) or "none"
        raise ConfigError(f"{family.title} has no sampling recipe {name!r}", where=naming.where, fix=f"Known: {known}.")
    recipe = family.recipes[name]
    said: Table = {"guidance": recipe.guidance, "steps": recipe.steps}
    if recipe.shift is not None:
        said["shift"] = recipe.shift
    return [Layer({"sampling": said}, f"recipe {name}, named in {naming.where}", naming.by)]


def _translated(layer: Layer, notes: list[str]) -> Layer:
    """The layer with our names for what [sampling] calls as other trainers do; each name is noted."""
    section = layer.table.get("sampling")
    if not isinstance(section, Mapping) or not section.keys() & SAMPLING_NAMES.keys():
        return layer
    ours = dict(section)
    for theirs, (name, meaning) in SAMPLING_NAMES.items():
        if theirs not in ours:
            continue
        if name in ours:
            what = f"sampling.{theirs} and sampling.{name} are the same setting"
            raise ConfigError(what, where=layer.where, fix=f"Leave out sampling.{theirs}.")
        ours[name] = ours.pop(theirs)
        notes.append(f"sampling.{theirs} is called sampling.{name} here{meaning}")
    return replace(layer, table={**layer.table, "sampling": ours})


def _merge(into: Table, table: Mapping[str, Any], origins: dict[str, Origin], origin: Origin, prefix: str = "") -> None:
    for key, value in table.items():
        if isinstance(value, Mapping):
            inner = into.setdefault(key, {})
            _merge(inner, value, origins, origin, f"{prefix}{key}.")
        else:
            into[key] = value
            origins[f"{prefix}{key}"] = origin


def _forget_length(merged: Table, table: Mapping[str, Any], origins: dict[str, Origin]) -> None:
    """A layer that says how long a run is, in updates or in epochs, overrides what those below it said in either."""
    length = ("updates", "epochs")
    section = table.get("train")
    if isinstance(section, Mapping) and any(name in section for name in length):
        for name in length:
            merged.get("train", {}).pop(name, None)
            origins.pop(f"train.{name}", None)


def check_keys(table: Mapping[str, Any], model: type[BaseModel], where: str, prefix: str = "") -> None:
    """Refuse unknown keys with the nearest known one, and a table where a value belongs or the reverse."""
    for key, value in table.items():
        path = f"{prefix}{key}"
        if key not in model.model_fields:
            close = difflib.get_close_matches(key, model.model_fields, n=1, cutoff=0.5)
            near = _elsewhere(key) or [f"{prefix}{name}" for name in close]
            hint = f"Did you mean {near[0]}? " if near else ""
            raise ConfigError(
                f"there is no setting '{path}'",
                where=where,
                fix=f"{hint}Known here: {', '.join(model.model_fields)}.",
            )
        inner = _inner(model, key)
        items = value if isinstance(value, (list, tuple)) else [value]
        if inner is None:
            if isinstance(value, Mapping) and get_origin(model.model_fields[key].annotation) is not dict:
                raise ConfigError(f"'{path}' is a value, not a section", where=where, fix=f"Write {path} = VALUE.")
            continue
        form = "[[data]]" if key == "data" else f"[{path}]"
        if not all(isinstance(item, Mapping) for item in items):
            raise ConfigError(f"'{path}' is a section, not a value", where=where, fix=f"Write {form}.")
        if (key == "data") != isinstance(value, (list, tuple)):
            option = "Say --data DIR, or write" if key == "data" else "Write"
            raise ConfigError(f"'{path}' is written in the wrong form", where=where, fix=f"{option} {form} in a file.")
        for item in items:
            check_keys(item, inner, where, f"{path}.")


def _inner(model: type[BaseModel], key: str) -> type[BaseModel] | None:
    annotation = model.model_fields[key].annotation
    candidates = (annotation, *getattr(annotation, "__args__", ()))
    return next((one for one in candidates if isinstance(one, type) and issubclass(one, BaseModel)), None)


def _elsewhere(key: str) -> list[str]:
    """Where a key that is in the wrong section, or goes by another trainer's name, belongs."""
    alias = ALIASES.get(key)
    if alias:
        return [alias]
    for name in Settings.model_fields:
        inner = _inner(Settings, name)
        if inner is not None and key in inner.model_fields:
            return [f"{name}.{key}"]
    return []


ALIASES = {
    "lr": "optimizer.learning_rate",
    "steps": "train.updates (optimizer updates) or sampling.steps",
    "max_train_steps": "train.updates",
    "gradient_accumulation_steps": "train.accumulation",
    "train_text_encoder": "text_encoder.train",
    "noise_scheduler": "scheduler.name",
    "sampler": "scheduler.name",
    "trigger_word": "trigger",
    "linear": "lora.rank",
    "linear_alpha": "lora.alpha",
    "network_dim": "lora.rank",
    "network_alpha": "lora.alpha",
    "save_every": "save.every",
    "max_step_saves_to_keep": "save.keep",
    "guidance_scale": "sampling.guidance",
    "sample_steps": "sampling.steps",
    "quantize": "quantization.name",
    "quantize_dtype": "quantization.name",
    "name_or_path": "model.source",
    "folder_path": "data.folder",
    "caption_ext": "data.captions",
    "caption_dropout_rate": "train.caption_dropout",
    "num_repeats": "data.repeats",
    "dtype": "train.precision or save.dtype",
}
"""Names that other trainers give to a setting, to suggest ours."""

SAMPLING_NAMES = {
    "guidance_scale": ("guidance", "; it is true classifier-free guidance"),
    "sample_steps": ("steps", ""),
    "neg": ("negative", ""),
}
"""Names that other trainers give to a setting of [sampling], which are taken for ours, and what to say of it."""


def explain(error: ValidationError, origins: Mapping[str, Origin]) -> ConfigError:
    """The first setting that pydantic refuses, with everything that it could have been."""
    found: dict[str, list[Any]] = {}
    for one in error.errors(include_url=False):
        location = [str(part) for part in one["loc"]]
        path = ".".join(part for part in location if not part.startswith(("function-", "constrained-", "literal[")))
        found.setdefault(path, []).append(one)
    path, refusals = next(iter(found.items()))
    origin = origin_of(path, origins)
    more = len(found) - 1
    given = refusals[0]["input"]
    shown = "" if isinstance(given, dict) else f", but is {given!r}"
    reasons = (one["msg"].removeprefix("Value error, ").removeprefix("Input ") for one in refusals)
    message = " or ".join(dict.fromkeys(reasons))
    return ConfigError(
        f"{path}: {message[:1].lower()}{message[1:]}{shown}",
        where=origin.where if origin else "",
        fix=f"{more} more setting{'s' * (more > 1)} also need mending." if more else "",
    )


def origin_of(path: str, origins: Mapping[str, Origin]) -> Origin | None:
    """The origin of `path` or of the nearest setting above or below it."""
    parts = path.split(".")
    for end in range(len(parts), 0, -1):
        head = ".".join(parts[:end])
        if head in origins:
            return origins[head]
        below = [origin for name, origin in origins.items() if name.startswith(f"{head}.")]
        if below:
            return below[-1]
    return None
