"""`lorakit recover`: an accuracy recovery adapter for a base in few bits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from lorakit.cli import options
from lorakit.cli.runs import read, readers_of, stopping
from lorakit.control import Control
from lorakit.errors import ConfigError
from lorakit.kit import Kit


@click.command()
@options.settings
@click.option("--model", metavar="MODEL", help="The same as --source.")
@click.option("--quantization", "-q", required=True, metavar="NAME", help="How the base is held: int8, int4 or int2.")
@click.option("--rank", type=click.IntRange(1, 1024), default=16, show_default=True, help="Rank of the correction.")
@click.option(
    "--samples", type=click.IntRange(2, 4096), default=256, show_default=True, help="Inputs that the model is shown."
)
@click.option(
    "--updates",
    type=click.IntRange(0, 100_000),
    default=300,
    show_default=True,
    help="Of all layers together, at the end.",
)
@click.option("-o", "--file", required=True, metavar="FILE", type=click.Path(path_type=Path), help="Adapter to write.")
@click.option("--json", "as_json", is_flag=True, help="Print events as JSON lines, and nothing else.")
@click.pass_obj
def recover(
    kit: Kit, /, quantization: str, rank: int, samples: int, updates: int, file: Path, as_json: bool, **given: Any
) -> int:
    """Make an accuracy recovery adapter: a low-rank correction that takes back most of what few bits cost.

    Layer by layer and block by block, then all layers together, on the pictures and captions of --data, or on neutral
    ones. Ctrl-C stops it; the same command goes on. The errors of every layer land beside the adapter, as JSON.
    """
    if file.suffix != ".safetensors":
        raise ConfigError(f"{file} is not called .safetensors", where="-o", fix="Give it that ending.")
    if file.exists():
        raise ConfigError(f"there is a file {file} already", where="-o", fix="Choose another name, or remove it.")
    source = given.pop("model")
    given["source"] = source or given["source"]
    held = f"{{name = {quantization!r}, uncorrected = true}}"
    given["sets"] = (*given["sets"], f"quantization={held}")
    plan = kit.plan(options.request(kit, given))
    control = Control()
    with stopping(control, as_json):
        events = kit.recover(plan, file, control, rank=rank, samples=samples, updates=updates)
        return read(events, readers_of(as_json))
