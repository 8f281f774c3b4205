"""Finding plugins and calling their hooks, so that it is always known who answered."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pluggy

from lorakit import hooks, trace
from lorakit.errors import LorakitError, PluginError
from lorakit.family import Family
from lorakit.registry import Registry, Shelves

GROUP = "lorakit"  # of entry points
CORE = "lorakit"  # the name under which core's own nouns are registered


@dataclass(frozen=True, slots=True)
class Plugin:
    """A loaded plugin: a module or object with hook implementations."""

    name: str
    version: str
    module: object


@dataclass(frozen=True, slots=True)
class Answer:
    """What one plugin answered to a hook."""

    owner: str
    value: Any


def discover(without: Iterable[str] = (), files: Iterable[Path] = ()) -> list[Plugin]:
    """Core's own plugin, every installed one in order of name, and the given files; `without` leaves some out."""
    skipped = set(without)
    found = core(())
    entries = sorted(importlib.metadata.entry_points(group=GROUP), key=lambda entry: entry.name)
    unknown = skipped - {entry.name for entry in entries}
    if unknown:
        raise PluginError(
            f"there is no plugin '{sorted(unknown)[0]}' to leave out",
            where="--without",
            fix=f"Installed are {', '.join(entry.name for entry in entries) or 'none'}.",
        )
    for entry in entries:
        if entry.name not in skipped:
            found.append(Plugin(entry.name, entry.dist.version if entry.dist else "", _load(entry)))
    found += [Plugin(path.stem, "", _load_file(path)) for path in files]
    return found


def core(files: Iterable[Path]) -> list[Plugin]:
    """Core's own plugin and the given files, and nothing that is installed."""
    from lorakit import __version__, builtin

    return [Plugin(CORE, __version__, builtin), *(Plugin(path.stem, "", _load_file(path)) for path in files)]


def register(pm: pluggy.PluginManager, shelves: Shelves) -> None:
    """Let every plugin put its nouns on the shelves, under its own name."""
    for implementation in sorted(pm.hook.register.get_hookimpls(), key=lambda one: one.plugin_name):
        _run(implementation, {"registry": Registry(shelves, implementation.plugin_name)}, "register")


def _load(entry: importlib.metadata.EntryPoint) -> object:
    try:
        return entry.load()
    except Exception as error:
        package = entry.dist.name if entry.dist else entry.value
        raise PluginError(
            f"the plugin '{entry.name}' of {package} does not load",
            why=f"{type(error).__name__}: {error}",
            fix=f"Mend or remove it, or leave it out: `lorakit --without {entry.name} ...`.",
        ) from error


def _load_file(path: Path) -> object:
    spec = importlib.util.spec_from_file_location(f"lorakit_plugin_{path.stem}", path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise PluginError(f"there is no plugin file {path}", where="--plugin", fix="Name a Python file.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise PluginError(
            f"the plugin file {path} does not load", where="--plugin", why=f"{type(error).__name__}: {error}"
        ) from error
    return module


def manager(plugins: Sequence[Plugin], family: Family | None = None) -> pluggy.PluginManager:
    """A fresh manager of `plugins`, and of `family` for the length of its own run; misspelt hooks are refused."""
    made = pluggy.PluginManager("lorakit")
    made.add_hookspecs(hooks)
    parties: list[tuple[str, object]] = [(plugin.name, plugin.module) for plugin in plugins]
    if family is not None:
        parties.append((f"family {family.name}", family))
    for name, module in parties:
        if made.has_plugin(name):
            raise _invalid(name, "another plugin has that name already")
        try:
            made.register(module, name=name)
        except (ValueError, pluggy.PluginValidationError) as error:
            raise _invalid(name, str(error)) from error
    for caller in vars(made.hook).values():
        _check_implementations(caller)
    return made


def _check_implementations(caller: pluggy.HookCaller) -> None:
    for implementation in caller.get_hookimpls():
        if not caller.has_spec() and not implementation.optionalhook:
            known = (*hooks.NOUN_HOOKS, *hooks.RULE_HOOKS, "check_plan", "on_event")
            raise _invalid(
                implementation.plugin_name, f"there is no hook '{caller.name}'; known are {', '.join(known)}"
            )
        if implementation.wrapper or implementation.hookwrapper:
            raise _invalid(implementation.plugin_name, f"{caller.name} is a wrapper, and wrappers are not called")


def _invalid(name: str, why: str) -> PluginError:
    return PluginError(
        f"the plugin '{name}' cannot be registered",
        why=" ".join(why.split()),
        fix=f"Mend it, or leave it out (`lorakit --without {name} ...`; for a file, without its --plugin).",
    )


def call(pm: pluggy.PluginManager, hook: str, **arguments: Any) -> Iterator[Answer]:
    """Each plugin's answer to `hook`, with its name, in order of name; a plugin that raises is named."""
    caller: pluggy.HookCaller = getattr(pm.hook, hook)
    for implementation in sorted(caller.get_hookimpls(), key=lambda one: one.plugin_name):
        yield Answer(implementation.plugin_name, _run(implementation, arguments, hook))


def _run(implementation: pluggy.HookImpl, arguments: Mapping[str, Any], hook: str) -> Any:
    given = {name: arguments[name] for name in implementation.argnames}
    try:
        value = implementation.function(**given)
        answer = tuple(value) if isinstance(value, Iterable) else value  # rules may come from a generator
    except Exception as error:
        trace.failed(hook, implementation.plugin_name, given, error)
        if isinstance(error, LorakitError):
            raise
        raise PluginError(
            f"the plugin '{implementation.plugin_name}' fails in {hook}",
            why=f"{type(error).__name__}: {error}",
            fix="Report it to its author, or leave it out (--without NAME; for a file, without its --plugin).",
        ) from error
    trace.answered(hook, implementation.plugin_name, given, answer)
    return answer
