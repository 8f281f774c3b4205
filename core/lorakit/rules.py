"""Rules meet; they do not race: how several voices decide one setting, whatever their order.

A rule narrows (`only`, `never`) or wishes (`prefer`), and says why. Narrowing is set intersection, so the order in
which plugins are registered cannot matter. A rule refuses and explains; it never rewrites what the user asked for.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from lorakit.errors import ConfigError, ConflictError, PluginError, RuleError

Value = str | bool | int | float
Scope = Literal["plugin", "family", "core"]
SCOPES: tuple[Scope, ...] = ("plugin", "family", "core")  # whose wish counts first


@dataclass(frozen=True, slots=True)
class Rule:
    """One thing that a plugin has to say about one field."""

    field: str
    kind: Literal["only", "never", "prefer"]
    values: tuple[Value, ...]
    because: str


def only(field: str, *values: Value, because: str) -> Rule:
    """Narrow `field` to `values`."""
    return _rule(field, "only", values, because)


def never(field: str, *values: Value, because: str) -> Rule:
    """Exclude `values` from `field`."""
    return _rule(field, "never", values, because)


def prefer(field: str, value: Value, *, because: str) -> Rule:
    """Wish for `value` where neither the user nor the preset says otherwise."""
    return _rule(field, "prefer", (value,), because)


def _rule(field: str, kind: Literal["only", "never", "prefer"], values: tuple[Value, ...], because: str) -> Rule:
    if not because.strip():
        raise PluginError(f"the rule '{kind}' about {field} gives no reason", fix="Pass because='...'.")
    if not values:
        raise PluginError(f"the rule '{kind}' about {field} names no value", fix="Name at least one value.")
    return Rule(field, kind, values, because.strip())


@dataclass(frozen=True, slots=True)
class Voice:
    """A rule together with who said it and in which scope."""

    rule: Rule
    owner: str
    scope: Scope

    def __str__(self) -> str:
        values = " or ".join(_show(value) for value in self.rule.values)
        return f"{self.owner} says {self.rule.kind} {values}, because {self.rule.because}"


@dataclass(frozen=True, slots=True)
class Asked:
    """A value that somebody asked for, and where: the user's own settings, or the preset."""

    value: Value
    where: str
    by: Literal["user", "preset"] = "user"


@dataclass(frozen=True, slots=True)
class Field:
    """A setting that rules may speak about.

    `group` is the hook that may speak about it; `known` are its possible values, or None where any value of the
    setting's type will do; `unknown` is what to say of others.
    """

    name: str
    group: str
    known: tuple[Value, ...] | None
    default: Value
    because: str
    unknown: str = ""


@dataclass(frozen=True, slots=True)
class Choice:
    """One decided setting: the value, who decided it and why, and every voice that shaped it."""

    field: str
    value: object
    decided_by: str
    because: str
    voices: tuple[str, ...] = ()


def settle(field: Field, voices: Sequence[Voice], asked: Sequence[Asked] = ()) -> Choice:
    """The choice for `field`: user over preset over wishes by scope, all of them within what the rules allow.

    Raises PluginError for a rule about another field or an unknown value, ConfigError for an unknown value asked
    for, RuleError when a rule refuses what was asked for, and ConflictError when rules leave nothing or two wishes
    of one scope differ.
    """
    heard = sorted(voices, key=lambda voice: (SCOPES.index(voice.scope), voice.owner, str(voice.rule)))
    _check_rules(field, heard)
    allowed = _narrow(field, heard)
    said = tuple(str(voice) for voice in heard)
    for wish in sorted(asked, key=lambda one: one.by != "user"):
        _check_asked(field, wish, heard, allowed)
        return Choice(field.name, wish.value, wish.where, f"asked for by the {wish.by}", said)
    if allowed is not None and len(allowed) == 1:
        reasons = [voice for voice in heard if voice.rule.kind != "prefer"]
        because = "; ".join(voice.rule.because for voice in reasons) or field.because
        owners = ", ".join(dict.fromkeys(voice.owner for voice in reasons)) or "lorakit"
        return Choice(field.name, allowed[0], owners, because, said)
    return _wish(field, heard, allowed, said)


def _check_rules(field: Field, voices: Sequence[Voice]) -> None:
    for voice in voices:
        if voice.rule.field != field.name:
            raise PluginError(f"{voice.owner} has a rule about {voice.rule.field}, asked about {field.name}")
        for value in voice.rule.values:
            if field.known is not None and not _within(value, field.known):
                raise PluginError(
                    f"{voice.owner} has a rule about {field.name} = {_show(value)}, which is not a known value",
                    fix=f"Known are {_list(field.known)}.",
                )


def _narrow(field: Field, voices: Sequence[Voice]) -> tuple[Value, ...] | None:
    """The values left by every `only` and `never`; None where the field is open and nobody said `only`."""
    allowed = field.known
    for voice in voices:
        if voice.rule.kind == "only":
            keep = voice.rule.values
            allowed = tuple(v for v in (keep if allowed is None else allowed) if _within(v, keep))
    banned = [value for voice in voices if voice.rule.kind == "never" for value in voice.rule.values]
    if allowed is not None:
        allowed = tuple(value for value in allowed if not _within(value, banned))
        if not allowed:
            raise ConflictError(
                f"the rules leave no value for {field.name}",
                why=_reasons(v for v in voices if v.rule.kind != "prefer"),
                fix="Leave one of these plugins out with `lorakit --without NAME`.",
            )
    return allowed


def _check_asked(field: Field, wish: Asked, voices: Sequence[Voice], allowed: tuple[Value, ...] | None) -> None:
    if field.known is not None and not _within(wish.value, field.known):
        raise ConfigError(
            f"{field.name} = {_show(wish.value)} is not known",
            where=wish.where,
            why=field.unknown,
            fix=f"Known are {_list(field.known)}.",
        )
    against = [voice for voice in voices if _objects(voice.rule, wish.value)]
    if against:
        choices = f"Choose {_list(allowed)}" if allowed else "Choose another value"
        removal = "leave the setting out" if wish.by == "user" else "choose another preset"
        raise RuleError(
            f"{field.name} = {_show(wish.value)} is refused",
            where=wish.where,
            why=_reasons(against),
            fix=f"{choices}, or {removal}.",
        )


def _objects(rule: Rule, value: Value) -> bool:
    return (rule.kind == "never" and _within(value, rule.values)) or (
        rule.kind == "only" and not _within(value, rule.values)
    )


def _wish(field: Field, voices: Sequence[Voice], allowed: tuple[Value, ...] | None, said: tuple[str, ...]) -> Choice:
    banned = [value for voice in voices if voice.rule.kind == "never" for value in voice.rule.values]
    for scope in SCOPES[:2]:
        wishes = [
            voice
            for voice in voices
            if voice.scope == scope
            and voice.rule.kind == "prefer"
            and not _within(voice.rule.values[0], banned)
            and (allowed is None or _within(voice.rule.values[0], allowed))
        ]
        distinct = {(isinstance(voice.rule.values[0], bool), voice.rule.values[0]) for voice in wishes}
        if len(distinct) > 1:
            raise ConflictError(
                f"two plugins wish for different values of {field.name}",
                why=_reasons(wishes),
                fix=f"Choose one yourself: --set {field.name}=VALUE.",
            )
        if wishes:
            first = wishes[0]
            return Choice(field.name, first.rule.values[0], first.owner, first.rule.because, said)
    if _within(field.default, banned) or (allowed is not None and not _within(field.default, allowed)):
        raise ConflictError(
            f"the rules exclude the default of {field.name}, {_show(field.default)}, and nobody wishes for another",
            why=_reasons(voices),
            fix=f"Choose {f'one of {_list(allowed)}' if allowed else 'another'}: --set {field.name}=VALUE.",
        )
    return Choice(field.name, field.default, "lorakit", field.because, said)


def _within(value: Value, values: Sequence[Value]) -> bool:
    """Membership that keeps True and 1 apart, which `in` does not."""
    return any(value == other and isinstance(value, bool) == isinstance(other, bool) for other in values)


def _show(value: Value) -> str:
    return str(value).lower() if isinstance(value, bool) else f"'{value}'" if isinstance(value, str) else str(value)


def _list(values: Sequence[Value]) -> str:
    return ", ".join(_show(value) for value in values)


def _reasons(voices: Iterable[Voice]) -> str:
    return "; ".join(str(voice) for voice in voices)
