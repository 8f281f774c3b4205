"""`lorakit plan`: every decision, who took it and why, before anything is loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from lorakit.cli import options
from lorakit.errors import ConfigError
from lorakit.kit import Kit
from lorakit.last_plan import remember

if TYPE_CHECKING:
    from lorakit.estimate.figures import Estimate
    from lorakit.plan import Plan

POSITIVE = click.FloatRange(min=0, min_open=True)
COLOURS = {"error": "red", "warning": "yellow"}


@click.command()
@options.settings
@options.gpus
@click.option("--gpu", metavar="NAME", help="GPU to estimate for, as 4090, L40S or H100.")
@click.option("--memory", metavar="GB", type=POSITIVE, help="GPU memory to plan for, over the card's own.")
@click.option("--price", metavar="AMOUNT", type=POSITIVE, help="What an hour of all GPUs costs, in any currency.")
@click.option("--hours", metavar="HOURS", type=POSITIVE, help="Hours there are: are they enough?")
@click.option("--json", "as_json", is_flag=True, help="Print the plan as JSON, with the estimate in it.")
@click.pass_obj
def plan(
    kit: Kit,
    /,
    as_json: bool,
    gpu: str | None,
    memory: float | None,
    price: float | None,
    hours: float | None,
    **given: Any,
) -> int:
    """Show what a run would do and take: settings with who decided them and why, arithmetic, memory, time.

    Takes the options of train, and says for which GPU. Nothing is loaded, and no run is made. What is printed is
    TOML: saved to a file and given with --config, it means the same run.
    """
    made = kit.plan(options.request(kit, given), gpu=gpu, memory=memory)
    remember(made)
    estimate = kit.estimate(made, gpu=gpu, memory=memory, price=price, hours=hours)
    if estimate is None or estimate.duration is None:
        _refuse_without_time(estimate, price, hours, made)
    if as_json:
        click.echo(_json(made, estimate))
    else:
        show(made, estimate)
    return 2 if made.errors else 0


def _refuse_without_time(estimate: Estimate | None, price: float | None, hours: float | None, made: Plan) -> None:
    """Money and hours are about time; where none can be told, nobody shall think that they were looked at."""
    option = "--price" if price is not None else "--hours" if hours is not None else ""
    if not option or not made.arithmetic.images:
        return
    why = "the family does not tell the size of this model" if estimate is None else "no device is named or measured"
    fix = "" if estimate is None else "Name a --gpu, or measure this machine with `lorakit calibrate`."
    raise ConfigError(f"{option} needs an estimate of time", where=option, why=why, fix=fix)


def _json(made: Plan, estimate: Estimate | None) -> str:
    import json

    from lorakit.estimate.words import table

    found = {**json.loads(made.to_json()), "estimate": table(estimate) if estimate else None}
    return json.dumps(found, indent=1, ensure_ascii=False)


def show(made: Plan, estimate: Estimate | None = None) -> None:
    """Print the whole plan."""
    from lorakit.explain import to_toml

    for line in to_toml(made):
        setting, mark, comment = line.partition("# ")
        click.echo(setting + click.style(mark + comment, dim=True))
    click.echo()
    summary(made, "# ", estimate)


def summary(made: Plan, margin: str = "", estimate: Estimate | None = None) -> None:
    """Print the arithmetic, what the run will take, and what is odd, errors first."""
    from lorakit.explain import arithmetic

    for line in arithmetic(made):
        click.echo(f"{margin}{line}")
    if estimate:
        from lorakit.estimate.words import lines

        click.echo(margin.rstrip())
        for line in lines(made, estimate):
            click.echo(f"{margin}{line}")
    problems = (*made.problems, *(estimate.problems if estimate else ()))
    for problem in sorted(problems, key=lambda one: one.severity != "error"):
        owner = "" if problem.owner == "lorakit" else f" ({problem.owner})"
        label = click.style(problem.severity, fg=COLOURS[problem.severity])
        click.echo(f"{margin}{label}: {problem.message}{owner}")
