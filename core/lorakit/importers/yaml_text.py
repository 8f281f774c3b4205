"""YAML to flat keys with their lines: plain values only, whatever the file asks for."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any

import yaml

from lorakit.errors import ConfigError
from lorakit.importers.leaf import Leaf, joined

DEEPEST, MOST = 40, 20_000  # levels of nesting, and values: what aliases repeat is counted each time
STANDARD = "tag:yaml.org,2002:"
PLAIN = {f"{STANDARD}{kind}" for kind in ("str", "int", "float", "bool", "null", "timestamp")}
MERGE = f"{STANDARD}merge"
# YAML 1.1 takes 1e-4, without a dot, for a text; every trainer means the number
NUMBER = re.compile(r"[-+]?(\d[\d_]*)(\.\d*)?[eE][-+]?\d+")


def leaves(text: str, name: str) -> Iterator[Leaf]:
    """The keys of a YAML text in their order, or a ConfigError that names the line."""
    try:
        loader = yaml.SafeLoader(text)
        root = loader.get_single_node()
        yield from _Reading(loader).flat(root, "", 0)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}: " if mark else ""
        raise _bad(name, f"{where}{error.problem or error.context}") from error
    except (yaml.YAMLError, ValueError) as error:
        raise _bad(name, " ".join(str(error).split())) from error
    except RecursionError:
        raise _bad(name, "it is nested too deeply") from None


def _bad(name: str, why: str) -> ConfigError:
    return ConfigError(f"{name} is not the YAML of a configuration", why=why, fix="Mend that line.")


class _Reading:
    """Walks the nodes of one text; the nodes, not a loaded value, because they know their lines."""

    def __init__(self, loader: yaml.SafeLoader) -> None:
        self._loader = loader
        self._count = 0
        self._merged: dict[int, dict[str, tuple[yaml.Node, yaml.Node]]] = {}
        self._open: set[int] = set()
        self._again: list[Leaf] = []

    def flat(self, node: yaml.Node | None, prefix: str, depth: int) -> Iterator[Leaf]:
        """The leaves below a node; what a key said before it was said again comes first."""
        self._tick(node, depth)
        if isinstance(node, yaml.MappingNode) and (node.value or not prefix):
            pairs = self._pairs(node)
            while self._again:
                leaf = self._again.pop()
                yield Leaf(joined(prefix, leaf.key), leaf.value, leaf.line, shadowed=True)
            for key, (_, value) in pairs.items():
                yield from self.flat(value, joined(prefix, key), depth + 1)
        elif isinstance(node, yaml.SequenceNode) and _of_mappings(node):
            self._check_tag(node)
            for place, item in enumerate(node.value):
                yield from self.flat(item, f"{prefix}[{place}]", depth + 1)
        elif node is not None:
            yield Leaf(prefix, self._value(node, depth), node.start_mark.line + 1)

    def _value(self, node: yaml.Node, depth: int) -> Any:
        self._tick(node, depth)
        if isinstance(node, yaml.MappingNode):
            return {key: self._value(value, depth + 1) for key, (_, value) in self._pairs(node).items()}
        self._check_tag(node)
        if isinstance(node, yaml.SequenceNode):
            return [self._value(item, depth + 1) for item in node.value]
        return self._scalar(node)

    def _scalar(self, node: yaml.Node) -> Any:
        text = node.value
        if node.tag == f"{STANDARD}str":
            number = isinstance(node, yaml.ScalarNode) and node.style is None and NUMBER.fullmatch(text)
            return float(text) if number and math.isfinite(float(text)) else text
        if node.tag == f"{STANDARD}timestamp":
            return text
        try:
            return self._loader.construct_object(node)
        except (ValueError, KeyError, IndexError) as error:  # PyYAML's readers of numbers are careless
            raise yaml.MarkedYAMLError(
                problem=f"{text!r} is no value ({error})", problem_mark=node.start_mark
            ) from None

    def _pairs(self, node: yaml.MappingNode) -> dict[str, tuple[yaml.Node, yaml.Node]]:
        """The keys of a table, with those that it merges (`<<: *other`) below its own."""
        known = self._merged.get(id(node))
        if known is not None:
            return known
        if id(node) in self._open:
            raise yaml.MarkedYAMLError(problem="a table holds itself", problem_mark=node.start_mark)
        self._open.add(id(node))
        self._check_tag(node)
        own: dict[str, tuple[yaml.Node, yaml.Node]] = {}
        merged: dict[str, tuple[yaml.Node, yaml.Node]] = {}
        for key, value in node.value:
            if key.tag == MERGE:
                for table in value.value if isinstance(value, yaml.SequenceNode) else [value]:
                    if not isinstance(table, yaml.MappingNode):
                        raise yaml.MarkedYAMLError(problem="<< merges tables only", problem_mark=key.start_mark)
                    merged = {**self._pairs(table), **merged}
                continue
            if not isinstance(key, yaml.ScalarNode) or key.tag not in PLAIN:
                raise yaml.MarkedYAMLError(problem="a key is not a plain word", problem_mark=key.start_mark)
            if key.value in own:
                _, before = own.pop(key.value)
                self._again.append(Leaf(key.value, _shown(before), before.start_mark.line + 1))
            own[key.value] = (key, value)
        self._open.discard(id(node))
        self._merged[id(node)] = {**merged, **own}
        return self._merged[id(node)]

    def _check_tag(self, node: yaml.Node) -> None:
        kinds: dict[type[yaml.Node], set[str]] = {
            yaml.MappingNode: {f"{STANDARD}map"},
            yaml.SequenceNode: {f"{STANDARD}seq"},
        }
        if node.tag not in kinds.get(type(node), PLAIN):
            tag = node.tag.removeprefix(STANDARD)
            raise yaml.MarkedYAMLError(
                problem=f"the tag !!{tag} asks for more than a plain value, and is not obeyed",
                problem_mark=node.start_mark,
            )

    def _tick(self, node: yaml.Node | None, depth: int) -> None:
        self._count += 1
        if depth > DEEPEST or self._count > MOST:
            mark = node.start_mark if node else None
            raise yaml.MarkedYAMLError(problem="it is nested too deeply or repeats too much", problem_mark=mark)


def _of_mappings(node: yaml.SequenceNode) -> bool:
    return bool(node.value) and all(isinstance(one, yaml.MappingNode) and one.value for one in node.value)


def _shown(node: yaml.Node) -> Any:
    return node.value if isinstance(node, yaml.ScalarNode) else "..."
