"""Every hook call with its answer, told to the logger `lorakit.hooks`; silent unless somebody listens.

The command line listens where LORAKIT_TRACE is set; a host program sets the logger's level and adds a handler.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any

from lorakit.problem import Problem
from lorakit.rules import Rule
from lorakit.secret import redacted

LOG = logging.getLogger("lorakit.hooks")
LONGEST = 400  # characters of an answer that nothing here knows how to say


def answered(hook: str, owner: str, arguments: Mapping[str, Any], answer: object) -> None:
    """Tell what a plugin answered."""
    _tell(hook, owner, arguments, _words(answer))


def failed(hook: str, owner: str, arguments: Mapping[str, Any], error: Exception) -> None:
    """Tell that a plugin failed instead."""
    _tell(hook, owner, arguments, f"{type(error).__name__}: {error}")


def _tell(hook: str, owner: str, arguments: Mapping[str, Any], words: str) -> None:
    if LOG.isEnabledFor(logging.DEBUG):
        given = ", ".join(type(value).__name__ for value in arguments.values())
        LOG.debug("%s", redacted(f"{hook}({given}) {owner} -> {words}"))


def _words(answer: object) -> str:
    match answer:
        case None:
            return "nothing"
        case Rule(field=field, kind=kind, values=values, because=because):
            return f"{kind} {field} = {' or '.join(map(str, values))}, because {because}"
        case Problem(message=message, severity=severity):
            return f"{severity}: {message}"
        case str():
            return repr(answer)[:LONGEST]
        case Iterable():
            return "; ".join(map(_words, answer)) or "nothing"
        case _:
            return repr(answer)[:LONGEST]
