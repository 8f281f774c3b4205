"""`lorakit sample` and `lorakit grid`: pictures drawn with a LoRA file, and with all of a run's checkpoints."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lorakit import launched
from lorakit.cli import options
from lorakit.cli.quiet import shown
from lorakit.cli.runs import launch, read, readers_of, stopping
from lorakit.control import Control
from lorakit.drawing import latest
from lorakit.errors import ConfigError
from lorakit.kit import Kit

if TYPE_CHECKING:
    from lorakit.config import Layer
    from lorakit.lora_facts import Facts
    from lorakit.plan import Plan

STRONGEST = 4.0
"""Strengths beyond this, in both directions, draw noise."""

gpus = click.option("--gpus", metavar="N", type=click.IntRange(min=1), help="GPUs that draw side by side, by torchrun.")


@click.command()
@click.argument("file", metavar="FILE|RUN", type=click.Path(path_type=Path))
@click.option("--prompt", "-p", "prompts", multiple=True, metavar="TEXT", help="What to draw; may be given again.")
@click.option("--strength", metavar="NUMBER", default="1", show_default=True, help="Strength of the LoRA.")
@click.option("-o", "out", required=True, metavar="PNG", type=click.Path(path_type=Path), help="Picture to write.")
@click.option("--reference", "references", multiple=True, metavar="PICTURE", help="What an editing model starts from.")
@click.option("--size", metavar="WxH", help="Width and height in pixels, as 1024x1024, or one for both.")
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), help="Seed of the noise; the next prompt has the next one.")
@click.option("--steps", type=click.IntRange(2, 1000), help="Sampling steps.")
@click.option("--guidance", metavar="NUMBER", help="Guidance strength.")
@click.option("--negative", metavar="TEXT", help="What true guidance moves away from.")
@click.option("--family", metavar="FAMILY", help="Family of the file, where its names do not tell.")
@click.option("--variant", metavar="VARIANT", help="Published model of the family.")
@click.option("--source", "--base", metavar="MODEL", help="Hub repository, local model folder, or toy.")
@click.option("--output", metavar="DIR", help="Folder of runs, in which encoded text is kept.")
@gpus
@click.option("--set", "-s", "sets", multiple=True, metavar="KEY=VALUE", help="Any other setting.")
@click.option("--force", is_flag=True, help="Overwrite pictures.")
@click.option("--json", "as_json", is_flag=True, help="Print events as JSON lines, and nothing else.")
@click.pass_obj
def sample(
    kit: Kit,
    /,
    file: Path,
    strength: str,
    out: Path,
    force: bool,
    as_json: bool,
    **given: Any,
) -> int:
    """Draw with a LoRA FILE, or with the newest of a RUN, at any strength.

    Model and sampling are those of the run that the file lies in, or what its metadata tells; else the family's usual
    ones, or its toy where the file was made for that. What you say here comes first.
    """
    strong = number(strength, "--strength", least=-STRONGEST, most=STRONGEST)
    facts, plan = kit.drawing(file, asked(given), family=given["family"])
    places = _places(out, len(plan.settings.sampling.prompts), force)
    if plan.settings.train.gpus > 1 and not launched.together():
        return launch(plan.settings.train.gpus)
    control = Control()
    if not as_json and not launched.number():
        _introduce(plan, facts)
    with stopping(control, as_json):
        return read(kit.sample(plan, facts, strong, places, control), readers_of(as_json))


def _introduce(plan: Plan, facts: Facts) -> None:
    """Say which model draws, who chose it, and how."""
    settings, sampling = plan.settings, plan.settings.sampling
    base = "" if settings.quantization.name == "none" else f" in {settings.quantization.name}"
    who = plan.choices["model.source"].decided_by
    click.echo(shown(f"file         {facts.file}"))
    click.echo(shown(f"model        {settings.family} {settings.variant}, {settings.model.source}{base} ({who})"))
    size = f"{sampling.width}x{sampling.height}"
    click.echo(f"sampling     {size}, {sampling.steps} steps, guidance {sampling.guidance:g}, seed {sampling.seed}")


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--strength", "strengths", multiple=True, metavar="NUMBER", help="May be given again. Default: 0.6, 0.8 and 1."
)
@click.option(
    "--guidance", "guidances", multiple=True, metavar="NUMBER", help="May be given again. Default: 3, 3.5 and 4."
)
@click.option(
    "--prompt", "-p", "prompts", multiple=True, metavar="TEXT", help="May be given again. Default: the run's."
)
@click.option(
    "--checkpoint",
    "checkpoints",
    multiple=True,
    type=click.IntRange(1),
    metavar="UPDATE",
    help="Default: all there are.",
)
@gpus
@click.option("--size", metavar="WxH", help="Width and height in pixels, as 1024x1024, or one for both.")
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), help="Seed of the noise; the next prompt has the next one.")
@click.option("--steps", type=click.IntRange(2, 1000), help="Sampling steps.")
@click.option("--set", "-s", "sets", multiple=True, metavar="KEY=VALUE", help="Any other setting.")
@click.option("--json", "as_json", is_flag=True, help="Print events as JSON lines, and nothing else.")
@click.pass_obj
def grid(
    kit: Kit,
    /,
    run: Path,
    strengths: tuple[str, ...],
    guidances: tuple[str, ...],
    checkpoints: tuple[int, ...],
    as_json: bool,
    **given: Any,
) -> int:
    """Draw a RUN's checkpoints at several strengths and guidances, and lay all pictures out on one sheet.

    The pictures and their list land in RUN/grid. What was drawn before is not drawn again, so that a stopped grid goes
    on, and a larger one only draws what is new.
    """
    strong = [number(one, "--strength", least=-STRONGEST, most=STRONGEST) for one in strengths]
    guided = [number(one, "--guidance", least=1, most=100) for one in guidances]
    changes, control = asked(given), Control()
    events = kit.grid(run, changes, checkpoints=checkpoints, strengths=strong, guidances=guided, control=control)
    count = kit.drawing(latest(run), changes, run=run)[1].settings.train.gpus
    if count > 1 and not launched.together():
        return launch(count)
    with stopping(control, as_json):
        return read(events, readers_of(as_json))


def asked(given: dict[str, Any]) -> list[Layer]:
    """One layer for each option that was said."""
    from lorakit.config import Layer

    sampling: dict[str, Any] = {}
    found = []
    if given.get("prompts"):
        sampling["--prompt"] = {"prompts": list(given["prompts"]), "references": [[]] * len(given["prompts"])}
    if given.get("references"):
        if not given.get("prompts"):
            raise ConfigError("--reference needs a prompt", fix="Say --prompt.")
        sampling["--reference"] = {"references": [list(given["references"])] * len(given["prompts"])}
    if given.get("size"):
        sampling["--size"] = dict(zip(("width", "height"), _size(given["size"]), strict=True))
    if given.get("guidance") is not None:
        sampling["--guidance"] = {"guidance": number(given["guidance"], "--guidance", least=1, most=100)}
    for name in ("seed", "steps", "negative"):
        if given.get(name) is not None:
            sampling[f"--{name}"] = {name: given[name]}
    for name in ("variant", "output"):
        if given.get(name) is not None:
            found.append(Layer({name: given[name]}, f"--{name}"))
    if given.get("source"):
        found.append(Layer({"model": {"source": given["source"]}}, "--source"))
    found += [Layer({"sampling": table}, where) for where, table in sampling.items()]
    return found + options.changes(given.get("sets", ()), given.get("gpus"))


def number(text: str, where: str, *, least: float, most: float) -> float:
    """The number that an option says, within its bounds; ConfigError where it is none."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not least <= value <= most:
        raise ConfigError(f"{text!r} is no number from {least:g} to {most:g}", where=where)
    return value


def _size(text: str) -> tuple[int, int]:
    width, cross, height = text.lower().partition("x")
    if not width.isdecimal() or not (height.isdecimal() if cross else True) or len(text) > 11:
        raise ConfigError(f"{text!r} is no size", where="--size", fix="Write it as 1024x768, or 1024.")
    return int(width), int(height if cross else width)


def _places(out: Path, count: int, force: bool) -> Sequence[Path]:
    """A file for each picture: the one that is named, or that name with numbers."""
    if out.suffix.lower() != ".png":
        raise ConfigError(f"{out} is not called .png", where="-o", fix="Give it that ending.")
    places = [out] if count == 1 else [out.with_name(f"{out.stem}-{one}{out.suffix}") for one in range(count)]
    there = [path for path in places if path.exists()]
    if there and (not force or any(path.is_dir() for path in there)):
        raise ConfigError(f"there is {there[0]} already", where="-o", fix="Choose another name, or say --force.")
    return places
