"""The `[plugin.NAME]` tables of a run, held against what each plugin says that it knows, and completed."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pydantic import ValidationError, create_model

from lorakit.config import check_keys, explain, origin_of
from lorakit.errors import ConfigError
from lorakit.registry import Shelf
from lorakit.request import Request
from lorakit.sections import Section


def completed(request: Request, known: Shelf[type[Section]]) -> Request:
    """The request with every known plugin's settings, defaults included; ConfigError where one cannot be.

    What a model takes is written back as JSON has it, so that a plan that is read again is equal.
    """
    given = request.settings.plugin
    for name in given:
        if name not in known:
            raise _unknown(name, known, request)
    found = {name: _checked(name, given.get(name, {}), model, request) for name, model in known.items()}
    return replace(request, settings=request.settings.model_copy(update={"plugin": found}))


def _unknown(name: str, known: Shelf[type[Section]], request: Request) -> ConfigError:
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"Did you mean [plugin.{near[0]}]? " if near else ""
    return ConfigError(
        f"no plugin '{name}' has settings",
        where=_where(f"plugin.{name}", request),
        fix=f"{hint}Those that have are {', '.join(known) or 'none'}; a plugin file is given with --plugin.",
    )


def _checked(name: str, table: Mapping[str, Any], model: type[Section], request: Request) -> dict[str, Any]:
    for key, value in table.items():
        check_keys({key: value}, model, _where(f"plugin.{name}.{key}", request), f"plugin.{name}.")
    # as deep as in a run's TOML, so that what is refused bears its whole name
    fields: dict[str, Any] = {name: (model, ...)}
    one = create_model("One", __base__=Section, **fields)
    whole = create_model("Whole", __base__=Section, plugin=(one, ...))
    try:
        made = whole.model_validate_json(json.dumps({"plugin": {name: table}}, default=str), strict=True)
    except ValidationError as error:
        raise explain(error, request.origins) from None
    dumped: dict[str, Any] = made.model_dump(mode="json")["plugin"][name]
    return dumped


def _where(path: str, request: Request) -> str:
    origin = origin_of(path, request.origins)
    return origin.where if origin else ""
