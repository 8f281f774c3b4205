"""The plugin: what it answers to hooks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from lorakit import hookimpl, never, prefer
from lorakit_lowvram import card

if TYPE_CHECKING:
    import click

    from lorakit import Event, Family, Kit, Plan, Request, Rule
    from lorakit.registry import Shelves


class LowVram:
    """An object with hook implementations, for it remembers something of every run."""

    def __init__(self) -> None:
        self._peaks: dict[str, int] = {}

    @hookimpl
    def quantization_rules(self, request: Request, family: Family, shelves: Shelves) -> Iterator[Rule]:
        """Only what fits, and by preference the finest of it."""
        memory, taken = card.memory(), card.taken(family, request.settings.variant, shelves.quantizers)
        if memory is None or not taken:
            return
        large = [name for name, size in taken.items() if size > card.SHARE * memory]
        fitting = [name for name in taken if name not in large]
        if large and fitting:
            least = min(taken[name] for name in large)
            because = f"the base would take {least:.1f} GB or more, over {card.SHARE:.0%} of a card of {memory:g} GB"
            yield never("quantization.name", *large, because=because)
            because = f"the finest that fits {memory:g} GB: the base takes {taken[fitting[0]]:.1f} GB"
            yield prefer("quantization.name", fitting[0], because=because)

    @hookimpl
    def register_commands(self, cli: click.Group) -> None:
        """`lorakit fits`."""
        import click

        @cli.command()
        @click.pass_obj
        def fits(kit: Kit) -> None:
            """List what fits the card: every family's base under every quantization."""
            memory = card.memory()
            if memory is None:
                raise click.ClickException("no card is found; say LOWVRAM_GB=12")
            for name, family in kit.shelves.families.items():
                for quantizer, size in card.taken(family, None, kit.shelves.quantizers).items():
                    verdict = "fits" if size <= card.SHARE * memory else "too large"
                    click.echo(f"{name:10} {quantizer:10} {size:6.1f} GB  {verdict}")

    @hookimpl
    def on_event(self, event: Event, plan: Plan) -> None:
        """Note the most memory that a run had in use."""
        from lorakit.events import RunFinished, UpdateFinished

        run = str(plan.folder)
        if isinstance(event, UpdateFinished):
            self._peaks[run] = max(event.memory, self._peaks.get(run, 0))
        elif isinstance(event, RunFinished):
            peak = self._peaks.pop(run, 0) / 1e9
            (plan.folder / "memory.txt").write_text(f"{peak:.2f} GB at most\n", encoding="utf-8")
