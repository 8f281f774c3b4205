"""A plan in words: as TOML with who decided what beside each setting, and the run's arithmetic."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping

from lorakit import validation
from lorakit.plan import DERIVED, Plan
from lorakit.rules import Choice
from lorakit.words import count

COMMENT_AT = 40  # the column where comments stand, where the setting leaves room


def to_toml(plan: Plan) -> Iterator[str]:
    """The plan's settings as lines of TOML that, as a configuration, give the same plan again.

    The comment of a setting says who decided it, and why where that is not plain.
    """
    section = ""
    for name, choice in plan.choices.items():
        top, _, leaf = name.partition(".")
        if top == "plugin":
            top, _, leaf = leaf.partition(".")
            top = f"plugin.{top}"
        if name == "data":
            yield from _data(choice)
            continue
        if leaf and top != section:
            section = top
            yield ""
            yield f"[{section}]"
        if choice.because == DERIVED:  # said, but not set: it follows from the other whatever else is changed
            yield f"# {leaf} = {choice.value:g}, {DERIVED}"
        elif choice.value is not None:
            yield from _line(leaf or name, choice.value, _why(choice))


def _data(choice: Choice) -> Iterator[str]:
    assert isinstance(choice.value, tuple)
    for entry in choice.value:
        yield ""
        yield f"[[data]]  # {_why(choice)}"
        for name, value in entry.items():
            if value is not None:
                yield from _line(name, value, "")


def _line(name: str, value: object, why: str) -> Iterator[str]:
    setting = f"{name} = {json.dumps(value, ensure_ascii=False)}"
    if not why:
        yield setting
    elif len(setting) < COMMENT_AT:
        yield f"{setting:{COMMENT_AT}}# {why}"
    else:
        yield f"# {why}"
        yield setting


def _why(choice: Choice) -> str:
    if choice.because == "default":
        return "default"
    asked = choice.because.startswith("asked for")
    said = choice.decided_by if asked else f"{choice.decided_by}: {choice.because}"
    return " ".join(said.split())  # a line break would end the comment


def arithmetic(plan: Plan) -> list[str]:
    """The run's arithmetic, a line a step; nothing where there are no pictures."""
    sums, settings = plan.arithmetic, plan.settings
    if not sums.images:
        return []
    seen = f", seeing {count(sums.references, 'reference')}" if sums.references else ""
    shapes = ", ".join(f"{shape} ({count})" for shape, count in sums.buckets[:6])
    more = f" and {len(sums.buckets) - 6} more shapes" if len(sums.buckets) > 6 else ""
    return [
        f"pictures     {sums.images}, with their repeats {count(sums.passes_per_epoch, 'pass')} an epoch{seen}",
        f"shapes       {shapes}{more}",
        f"an update    batches of {_batch(plan)} x {settings.train.accumulation} accumulated"
        f" = {count(sums.effective_batch, 'pass')}",
        f"an epoch     {count(sums.passes_per_epoch, 'pass')} in {count(sums.batches_per_epoch, 'batch')}"
        f" = {count(sums.updates_per_epoch, 'update')}",
        f"the run      {count(sums.epochs, 'epoch')} = {count(sums.updates, 'update')} = {count(sums.passes, 'pass')}",
        f"checkpoints  {_how_often(plan, settings.save.every)}, the newest {settings.save.keep} kept",
        f"previews     {_how_often(plan, settings.sampling.every)}, {count(len(settings.sampling.prompts), 'prompt')}",
        f"validation   {_validated(plan)}",
        f"the file     {plan.folder / settings.name}.safetensors",
    ]


def _batch(plan: Plan) -> str:
    train = plan.settings.train
    return f"{train.batch_size}" if train.gpus == 1 else f"{train.batch_size} on each of {train.gpus} GPUs"


def _validated(plan: Plan) -> str:
    settings, sums, held = plan.settings, plan.arithmetic, len(plan.held_out)
    if not settings.validation.every:
        return "none"
    few = f" ({sums.images} pictures are too few to spare any)" if settings.validation.pictures == "auto" else ""
    apart = f"{count(held, 'picture')} held out" if held else f"no pictures held out{few}"
    number = validation.times(settings.validation.every, sums, settings.train.accumulation)
    return f"{apart}; {count(number, 'time')}, before the first update and after the last included"


def _how_often(plan: Plan, every: int | str) -> str:
    if not every:
        return "none"
    if every == "epoch":
        return f"each epoch ({count(plan.arithmetic.updates_per_epoch, 'update')})"
    if isinstance(every, int) and every >= plan.settings.train.updates:
        return "at the end"
    return f"each {every} updates"


def diff(one: Plan, other: Plan) -> Mapping[str, tuple[object, object]]:
    """The settings in which two plans differ, with both values."""
    names = {**one.choices, **other.choices}
    values = {name: (_value(one, name), _value(other, name)) for name in names}
    return {name: pair for name, pair in values.items() if pair[0] != pair[1]}


def _value(plan: Plan, name: str) -> object:
    return plan.choices[name].value if name in plan.choices else None
