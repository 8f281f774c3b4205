"""`lorakit inspect`: what a LoRA file is, whoever made it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lorakit.cli.quiet import shown
from lorakit.kit import Kit
from lorakit.words import count

if TYPE_CHECKING:
    from lorakit.lora_facts import Facts

Norms = Mapping[str, float]


@click.command("inspect")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--family", metavar="FAMILY", help="Family that the file is for, where its names do not tell.")
@click.option("--norms/--no-norms", default=True, show_default=True, help="Measure how much each layer is changed.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, with all metadata and the norm of every layer.")
@click.pass_obj
def inspect(kit: Kit, /, file: Path, family: str | None, norms: bool, as_json: bool) -> None:
    """Tell what the LoRA FILE is: family, layout, ranks, alpha, layers, norms, trigger, training; whoever made it.

    Only the header is read, and with --norms the halves of one layer at a time.
    """
    from lorakit import lora_about

    facts = kit.inspect(file, family)
    measured = kit.norms(facts) if norms else None
    if as_json:
        click.echo(json.dumps(lora_about.table(facts, measured and _finite(measured)), indent=1))
        return
    for name, value in (*_about(facts), *_training(facts)):
        click.echo(shown(f"{name:12} {value}"))
    for line in (*_layers(facts, measured), *_remarks(facts, measured)):
        click.echo(shown(line))


def _about(facts: Facts) -> Iterator[tuple[str, str]]:
    from lorakit.lora_about import trigger
    from lorakit.lora_facts import alphas, ranks

    yield "file", f"{facts.file}, {facts.size / 1e6:.1f} MB"
    families = " or ".join(f"{one.family.title} ({one.family.name})" for one in facts.names)
    yield "family", families or "unknown"
    if facts.family:
        yield "variant", ", ".join(facts.variants) or f"not told; any of {', '.join(facts.family.variants)}"
    yield "layout", f"{facts.layout}, {', '.join(facts.dtypes)}"
    yield "layers", f"{len(facts.layers)}"
    yield "rank", _counted(ranks(facts))
    told = alphas(facts)
    scales = sorted({round(one.scale, 6) for one in facts.layers})
    alpha = "none: scale 1" if set(told) == {None} else _counted(told)
    yield "alpha", alpha if scales == [1] else f"{alpha}; scale {', '.join(f'{one:g}' for one in scales[:4])}"
    words, where = trigger(facts.metadata)
    yield "trigger", f"{words} ({where})" if words else "not told"


def _training(facts: Facts) -> Iterator[tuple[str, str]]:
    from lorakit.lora_about import training

    told = training(facts.metadata)
    if told:
        yield "training", ", ".join(f"{name} {value}" for name, value in told.items())
    yield "metadata", f"{count(len(facts.metadata), 'key')}" + ("; --json shows them" if facts.metadata else "")


def _layers(facts: Facts, norms: Norms | None) -> Iterator[str]:
    """A line for each kind of layer."""
    from lorakit.lora_facts import kinds

    found = kinds(facts)
    width = max(map(len, found))
    yield ""
    yield f"{'layer':{width}}  number  {'inputs':>12}  {'outputs':>12}" + (
        "" if norms is None else "    mean norm   largest"
    )
    for name, layers in sorted(found.items()):
        sizes = (sorted({getattr(one, side) for one in layers}) for side in ("inputs", "outputs"))
        cells = "  ".join(f"{'-'.join(map(str, (one[0], one[-1]) if len(one) > 1 else one)):>12}" for one in sizes)
        line = f"{name:{width}}  {len(layers):6}  {cells}"
        if norms is not None:
            values = [norms[one.name] for one in layers]
            line += f"   {sum(values) / len(values):10.4g}{max(values):10.4g}"
        yield line


def _remarks(facts: Facts, norms: Norms | None) -> Iterator[str]:
    if norms is not None:
        values = list(norms.values())
        yield f"{'whole':12} norm {math.sqrt(sum(one**2 for one in values)):.4g}"
        if bad := [name for name, one in norms.items() if not math.isfinite(one)]:
            yield f"note: {count(len(bad), 'layer')} with numbers that are not finite, as {bad[0]}: it draws black"
        if nothing := sum(one == 0 for one in values):
            yield f"note: {count(nothing, 'layer')} of {len(values)} change nothing"
    yield from (f"note: {one}" for one in facts.notes)


def _finite(norms: Norms) -> dict[str, float]:
    """JSON has no word for what is not finite: such a norm is -1."""
    return {name: one if math.isfinite(one) else -1.0 for name, one in norms.items()}


def _counted(found: Mapping[float, int] | Mapping[int, int] | Mapping[float | None, int]) -> str:
    """Each value, with how many layers have it where they differ."""
    named = {("none" if value is None else f"{value:g}"): number for value, number in found.items()}
    if len(named) == 1:
        return next(iter(named))
    first = [f"{name} ({count(number, 'layer')})" for name, number in list(named.items())[:6]]
    return ", ".join(first) + (f" and {len(named) - 6} more" if len(named) > 6 else "")
