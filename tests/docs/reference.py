"""The parts of the documentation that are made from the code; `python -m tests.docs.reference` writes them anew."""

from __future__ import annotations

import ast
import inspect
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

import click

import lorakit
from lorakit import errors, events, hooks
from lorakit.cli import build
from lorakit.kit import Kit
from lorakit.settings import Settings
from lorakit.testing import PROMISES

DOCS = Path(__file__).parents[2] / "docs"
BOUNDS = {"minimum": "≥ {}", "exclusiveMinimum": "> {}", "maximum": "≤ {}", "exclusiveMaximum": "< {}"}
WIDTH = 100
TABLES = {"data": "[[data]]"}


# Settings -----------------------------------------------------------------------------------------------


def settings() -> str:
    """Every setting in one table for each section."""
    schema = Settings.model_json_schema()
    sections = {name: _section(schema, about) for name, about in schema["properties"].items()}
    top = {name: about for name, about in schema["properties"].items() if sections[name] is None}
    lines = ["### Top settings", "", "Written above the first section.", "", *_table(schema, "", top)]
    for name, section in sections.items():
        if section is not None:
            form = TABLES.get(name, f"[{name}]")
            lines += ["", f"### {form}", "", section["description"], "", *_table(schema, f"{name}.", section)]
    return "\n".join(lines)


def names() -> set[str]:
    """Every setting by its dotted name, sections too."""
    schema = Settings.model_json_schema()
    found = set(schema["properties"])
    for name, about in schema["properties"].items():
        section = _section(schema, about)
        found |= {f"{name}.{leaf}" for leaf in section["properties"]} if section else set()
    return found


def _section(schema: Mapping[str, Any], about: Mapping[str, Any]) -> Mapping[str, Any] | None:
    reference = about.get("$ref") or about.get("items", {}).get("$ref")
    return schema["$defs"][reference.rpartition("/")[2]] if reference else None


def _table(schema: Mapping[str, Any], prefix: str, group: Mapping[str, Any]) -> Iterator[str]:
    properties = group.get("properties", group)
    required = group.get("required", schema["required"])
    yield "| setting | value | default | meaning |"
    yield "|---|---|---|---|"
    for name, about in properties.items():
        default = "required" if name in required else _default(about.get("default"))
        yield f"| `{prefix}{name}` | {_kind(about)} | {default} | {about['description']} |"


def _default(value: object) -> str:
    return "decided" if value is None else f"`{json.dumps(value)}`"


def _kind(about: Mapping[str, Any]) -> str:
    """The values that a setting may have, in words."""
    if "anyOf" in about:
        return " or ".join(_kind(one) for one in about["anyOf"] if one.get("type") != "null")
    if "enum" in about:
        return ", ".join(f"`{json.dumps(one)}`" for one in about["enum"])
    if "const" in about:
        return f"`{json.dumps(about['const'])}`"
    if about["type"] == "array":
        return _array(about)
    if about["type"] == "object":
        if "patternProperties" not in about:
            return "a table for each plugin"
        (inner,) = about["patternProperties"].values()
        return f"table of {_kind(inner)}"
    kind = {"number": "number", "integer": "whole number", "boolean": "true or false", "string": "text"}[about["type"]]
    bounds = [text.format(_bound(about[key])) for key, text in BOUNDS.items() if key in about]
    if about.get("maxLength"):
        bounds.append(f"of at most {about['maxLength']} characters")
    if about.get("pattern"):
        pattern = about["pattern"].replace("|", "\\|")
        bounds.append(f"like `{pattern}`")
    return f"{kind} {', '.join(bounds)}".strip()


def _bound(value: float) -> str:
    return f"{value:g}" if value < 2**53 else "2⁶³"


def _array(about: Mapping[str, Any]) -> str:
    if "prefixItems" in about:
        return "list of " + " and ".join(_kind(one) for one in about["prefixItems"])
    most = f", at most {about['maxItems']}" if "maxItems" in about else ""
    least = f", at least {about['minItems']}" if "minItems" in about else ""
    return f"list of {_kind(about['items'])}{least}{most}"


# Events -------------------------------------------------------------------------------------------------


def event_pages() -> str:
    """Every event with its fields."""
    lines = ["Every event has `time: float`, in seconds since 1970.", ""]
    for name, kind in events.KINDS.items():
        lines += [f"### {name}", "", inspect.cleandoc(kind.__doc__ or ""), ""]
        own = [one for one in fields(kind) if one.name != "time"]
        lines += ["| field | type |", "|---|---|"]
        lines += [f"| `{one.name}` | `{one.type}` |" for one in own] + [""]
    words = {"Phase": events.Phase, "AlarmKind": events.AlarmKind, "Verb": events.Verb}
    told = [f"`{name}` is one of {', '.join(f'`{one}`' for one in get_args(kind))}." for name, kind in words.items()]
    return "\n".join(lines) + "\n" + "\n\n".join(told)


# Public names -------------------------------------------------------------------------------------------


def api_pages() -> str:
    """Every public name with its first sentence; of what hosts hold in their hands, every signature."""
    lines = ["### lorakit", "", "| name | what it is |", "|---|---|"]
    for name in lorakit.__all__:
        about = _first(getattr(lorakit, name)) if name not in PLAIN else PLAIN[name]
        lines.append(f"| `{name}` | {about} |")
    for kind in (lorakit.Kit, lorakit.Control, lorakit.Plan, lorakit.LorakitError):
        lines += ["", f"### {kind.__name__}", "", inspect.cleandoc(kind.__doc__ or ""), ""]
        lines += list(_members(kind))
    lines += ["", "### lorakit.errors", "", "| name | what it is | exit code |", "|---|---|---|"]
    for name, kind in inspect.getmembers(errors, inspect.isclass):
        if issubclass(kind, errors.LorakitError):
            lines.append(f"| `{name}` | {_first(kind)} | {kind.exit_code} |")
    names = ", ".join(f"`{name}`" for name in sorted([*PLAIN_OF_EVENTS, *events.KINDS, "Event", "Unknown"]))
    lines += ["", "### lorakit.events", "", f"{names}: [what each event says](events.md#every-event)."]
    return "\n".join(lines)


PLAIN = {"__version__": "The version.", "hookimpl": "Marks a function or method as an implementation of a hook."}


PLAIN_OF_EVENTS = ("KINDS", "VERBS", "VERSION", "AlarmKind", "Phase", "Verb")


def _first(what: object) -> str:
    return " ".join((inspect.getdoc(what) or "").partition("\n\n")[0].split())


def _members(kind: type) -> Iterator[str]:
    """Every public field, method and property, as a list."""
    if "__init__" in vars(kind):
        yield f"- `{kind.__name__}{_signature(kind.__init__)}`"
    for name, told in vars(kind).get("__annotations__", {}).items():
        if not name.startswith("_") and name != "model_config":
            yield f"- `{name}: {told}`"
    for name, member in vars(kind).items():
        if name.startswith("_") or name in HIDDEN:
            continue
        if isinstance(member, property):
            yield f"- `{name}: {inspect.signature(member.fget).return_annotation}`: {_first(member)}"  # type: ignore[arg-type]
        elif inspect.isfunction(member) or isinstance(member, staticmethod):
            yield f"- `{name}{_signature(member)}`: {_first(member)}"


HIDDEN = {"begin", "take", "wait"}
"""What a control has for the run, and not for its host."""


class _Bare(str):
    """An annotation, shown without the quotes of the text that it is."""

    def __repr__(self) -> str:
        return str(self)


def _signature(function: Any) -> str:
    told = inspect.signature(getattr(function, "__func__", function))
    kept = [one.replace(annotation=_Bare(one.annotation)) for one in told.parameters.values() if one.name != "self"]
    return str(told.replace(parameters=kept, return_annotation=_Bare(told.return_annotation))).removesuffix(" -> None")


# Hooks --------------------------------------------------------------------------------------------------


def hook_pages() -> str:
    """Every hook with its exact signature."""
    tree = ast.parse(inspect.getsource(hooks))
    lines: list[str] = []
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and any(ast.unparse(one) == "hookspec" for one in node.decorator_list):
            assert node.returns is not None
            signature = f"{node.name}({ast.unparse(node.args)}) -> {ast.unparse(node.returns)}"
            lines += [f"### {node.name}", "", f"`{signature}`", "", ast.get_docstring(node) or "", ""]
    return "\n".join(lines).rstrip()


# Commands -----------------------------------------------------------------------------------------------


def command_pages() -> str:
    """Every command with its help, as a terminal of 100 columns shows it."""
    group = build(Kit())
    form = {**group.context_settings, "terminal_width": WIDTH, "max_content_width": WIDTH}
    context = click.Context(group, info_name="lorakit", **form)
    lines = [*_help(group, context)]
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        inner = click.Context(command, context, name, terminal_width=WIDTH, max_content_width=WIDTH)
        lines += [f"### lorakit {name}", "", *_help(command, inner)]
    return "\n".join(lines).rstrip()


def _help(command: click.Command, context: click.Context) -> list[str]:
    return ["```text", command.get_help(context), "```", ""]


# Importing ----------------------------------------------------------------------------------------------


def import_report() -> str:
    """What `lorakit import` prints of the first users' own file."""
    found = Kit().imported(DOCS / "examples" / "ai-toolkit.yaml")
    lines = [found.title.removeprefix(f"{DOCS.parent}/")]
    for heading, _, told in found.groups():
        lines += ["", heading, *(f"  {line}" for line in told)]
    return "\n".join(["```text", *lines, "```"])


# Promises -----------------------------------------------------------------------------------------------


def promises() -> str:
    """Every promise of a family, what is tried, and what it means where it is broken."""
    rows = [f"| {one} | {one.tried.__doc__} | {one.broken} |" for one in PROMISES]
    return "\n".join(["| promise | what is tried | broken, it means |", "|---|---|---|", *rows])


# Pages --------------------------------------------------------------------------------------------------

MADE: Mapping[str, Callable[[], str]] = {
    "commands.md": command_pages,
    "configuration.md": settings,
    "api.md": api_pages,
    "events.md": event_pages,
    "hooks.md": hook_pages,
    "importing.md": import_report,
    "plugins/promises.md": promises,
}
BEGIN = "<!-- made by `python -m tests.docs.reference`: begin -->"
END = "<!-- made by `python -m tests.docs.reference`: end -->"


def remade(page: str, text: str) -> str:
    """The page's text with its made part as the code has it now."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{MADE[page]()}\n\n{END}{after}"


if __name__ == "__main__":
    for name in MADE:
        path = DOCS / name
        path.write_text(remade(name, path.read_text(encoding="utf-8")), encoding="utf-8")
