"""`lorakit calibrate`: this machine measured, so that plans can tell how long runs take on it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from lorakit.kit import Kit

if TYPE_CHECKING:
    from lorakit.estimate.rates import Rates


@click.command()
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", help="What to measure.")
@click.option("--json", "as_json", is_flag=True, help="Print what was measured as JSON.")
@click.pass_obj
def calibrate(kit: Kit, /, device: str, as_json: bool) -> int:
    """Measure this machine in under 30 s; `lorakit plan` reckons with what was found from then on.

    Do it while nothing else runs, with as many threads as training will have.
    """
    from lorakit.estimate.rates import to_json

    found = kit.calibrate(device)
    if as_json:
        click.echo(to_json(found), nl=False)
    else:
        _show(found)
    return 0


def _show(found: Rates) -> None:
    from lorakit.estimate.rates import file_of
    from lorakit.estimate.words import size

    click.echo(f"device       {found.name}" + (f", {size(found.memory)}" if found.memory else ""))
    for name, speed in found.speeds.items():
        products = ", ".join(f"{rate / 1e12:.3g} at width {width}" for width, rate in speed.matmul)
        forward, backward = (rate / 1e12 for rate in speed.attention)
        click.echo(f"{name:<13}products in TFLOP/s: {products}")
        click.echo(f"{'':<13}attention {forward:.3g} forward, {backward:.3g} backward")
    forward, backward = (seconds * 1e6 for seconds in found.kernel)
    click.echo(f"element-wise {size(found.bandwidth)}/s read and written")
    click.echo(f"operations   {forward:.1f} µs to start one, {backward:.1f} µs backward")
    click.echo(f"taken before {size(found.context)}")
    click.echo(f"kept in      {file_of(found.name)}")
