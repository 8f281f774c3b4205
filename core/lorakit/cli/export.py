"""`lorakit export`: LoRA files written anew, in another layout, format or rank, or several as one."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from lorakit.cli.quiet import shown
from lorakit.errors import ConfigError
from lorakit.kit import Kit
from lorakit.layer_names import LAYOUTS, Layout

if TYPE_CHECKING:
    from lorakit.engine.lora_export import Exported


@click.command()
@click.argument("files", nargs=-1, required=True, metavar="FILE...", type=click.Path(path_type=Path))
@click.option("--layout", type=click.Choice(LAYOUTS), default="diffusers", show_default=True, help="Names of tensors.")
@click.option("-o", "--output", "out", required=True, metavar="OUT", type=click.Path(path_type=Path), help="The file.")
@click.option("--dtype", type=click.Choice(["bf16", "fp16", "fp32"]), help="Number format. Default: the files'.")
@click.option(
    "--weight", "weights", multiple=True, metavar="NUMBER", help="Strength of a file; once for each, in order."
)
@click.option("--rank", type=click.IntRange(1, 1024), help="Cut every layer to at most this rank, by SVD.")
@click.option(
    "--alpha",
    default="fold",
    show_default=True,
    metavar="ALPHA",
    help="With kohya's layout: a number, or restore for that of the training; fold makes it the rank.",
)
@click.option("--family", metavar="FAMILY", help="Family of the files, where their names do not tell.")
@click.option("--metadata/--no-metadata", default=True, show_default=True, help="Carry the metadata over.")
@click.option("--force", is_flag=True, help="Overwrite OUT.")
@click.option("--json", "as_json", is_flag=True, help="Print what was done as JSON.")
@click.pass_obj
def export(
    kit: Kit,
    /,
    files: tuple[Path, ...],
    layout: Layout,
    out: Path,
    dtype: str | None,
    weights: tuple[str, ...],
    rank: int | None,
    alpha: str,
    family: str | None,
    metadata: bool,
    force: bool,
    as_json: bool,
) -> None:
    """Write a LoRA FILE in another layout, or several as one; the effect stays the same unless you ask for another.

    Merging joins ranks, which is exact; --rank then cuts the sum to its largest singular values, and tells how much of
    it is kept. An alpha is folded into B.
    """
    from lorakit.lora_order import Order

    _refuse(out, force)
    strengths = tuple(_number(one, "--weight") for one in weights)
    if strengths and len(strengths) != len(files):
        raise ConfigError(
            f"there are {len(files)} files and {len(strengths)} weights",
            where="--weight",
            fix="Give one for each file, in their order, or none.",
        )
    order = Order(layout=layout, dtype=dtype, weights=strengths, rank=rank, alpha=_alpha(alpha), metadata=metadata)
    made = kit.export([kit.inspect(file, family) for file in files], order, out)
    if as_json:
        click.echo(json.dumps({**asdict(made), "path": str(made.path)}, indent=1))
    else:
        _tell(made)


def _refuse(out: Path, force: bool) -> None:
    if out.suffix != ".safetensors":
        raise ConfigError(f"{out} is not called .safetensors", where="-o", fix="Give it that ending.")
    if out.is_dir():
        raise ConfigError(f"{out} is a folder", where="-o", fix="Name a file in it.")
    if out.exists() and not force:
        raise ConfigError(f"there is a file {out} already", where="-o", fix="Choose another name, or say --force.")


def _number(text: str, where: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or abs(value) > 100 or not value:
        raise ConfigError(f"{text!r} is no number from -100 to 100 other than 0", where=where)
    return value


def _alpha(text: str) -> float | Literal["fold", "restore"]:
    if text in ("fold", "restore"):
        return text  # type: ignore[return-value]
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value <= 1e6:
        raise ConfigError(f"{text!r} is no alpha", where="--alpha", fix="Give a number over 0, fold or restore.")
    return value


def _tell(made: Exported) -> None:
    done: Mapping[str, Any] = made.done
    read = " + ".join(f"{one['weight']:g} x {one['name']}" for one in done["files"])
    click.echo(shown(f"read         {read}: {made.family}, {made.layers} layers"))
    if len(done["files"]) > 1:
        click.echo("merged       by joining ranks, which is exact; rounded once, to the number format")
    if "resized" in done:
        cut = done["resized"]
        least = f"; the least of a layer is {cut['least']:.2%}, in {cut['least_in']}" if cut["least_in"] else ""
        click.echo(
            shown(f"resized      to rank {cut['rank']} by SVD: {cut['energy']:.2%} of the energy is kept{least}")
        )
    ranks = done["ranks"]
    rank = f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {ranks[0]} to {ranks[-1]}"
    click.echo(f"layout       {done['layout']}, {rank}, {done['dtype']}, alpha {done['alpha']}")
    click.echo(shown(f"file         {made.path}, {made.size / 1e6:.1f} MB"))
