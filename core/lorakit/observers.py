"""Telling every `on_event` hook what happened; an observer that raises becomes a warning, once."""

from __future__ import annotations

from collections.abc import Generator, Iterator

import pluggy

from lorakit import trace
from lorakit.events import Event, Warned
from lorakit.plan import Plan


def observed(events: Iterator[Event], plan: Plan, pm: pluggy.PluginManager) -> Generator[Event, None, None]:
    """The same events, after every plugin has been told of each; closing this closes `events`."""
    silenced: set[str] = set()
    try:
        for event in events:
            warnings = [] if isinstance(event, Warned) else list(_tell(pm, event, plan, silenced))
            yield event
            yield from warnings
    finally:
        close = getattr(events, "close", None)
        if close:
            close()


def _tell(pm: pluggy.PluginManager, event: Event, plan: Plan, silenced: set[str]) -> Iterator[Warned]:
    arguments = {"event": event, "plan": plan}
    for implementation in sorted(pm.hook.on_event.get_hookimpls(), key=lambda one: one.plugin_name):
        name = implementation.plugin_name
        if name in silenced:
            continue
        given = {one: arguments[one] for one in implementation.argnames}
        try:
            trace.answered("on_event", name, given, implementation.function(**given))
        except Exception as error:  # an observer never stops training
            trace.failed("on_event", name, given, error)
            silenced.add(name)
            yield Warned(
                message=f"the observer '{name}' failed and is told nothing more: {type(error).__name__}: {error}"
            )
