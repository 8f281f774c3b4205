"""`lorakit plan`: every decision, who took it and why, before anything is loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from lorakit.cli import options
from lorakit.kit import Kit

if TYPE_CHECKING:
    from lorakit.plan import Plan

COLOURS = {"error": "red", "warning": "yellow"}


@click.command()
@options.settings
@click.option("--json", "as_json", is_flag=True, help="Print the plan as JSON.")
@click.pass_obj
def plan(kit: Kit, /, as_json: bool, **given: Any) -> int:
    """Show what a run would do: every setting with who decided it and why, the arithmetic, and what is odd.

    Takes the same options as train. Nothing is loaded and nothing is written. What is printed is TOML: saved to a file
    and given with --config, it means the same run.
    """
    made = kit.plan(options.request(kit, given))
    if as_json:
        click.echo(made.to_json(), nl=False)
    else:
        show(made)
    return 2 if made.errors else 0


def show(made: Plan) -> None:
    """Print the whole plan."""
    from lorakit.explain import to_toml

    for line in to_toml(made):
        setting, mark, comment = line.partition("# ")
        click.echo(setting + click.style(mark + comment, dim=True))
    click.echo()
    summary(made, "# ")


def summary(made: Plan, margin: str = "") -> None:
    """Print the arithmetic and what is odd, errors first."""
    from lorakit.explain import arithmetic

    for line in arithmetic(made):
        click.echo(f"{margin}{line}")
    for problem in sorted(made.problems, key=lambda one: one.severity != "error"):
        owner = "" if problem.owner == "lorakit" else f" ({problem.owner})"
        label = click.style(problem.severity, fg=COLOURS[problem.severity])
        click.echo(f"{margin}{label}: {problem.message}{owner}")
