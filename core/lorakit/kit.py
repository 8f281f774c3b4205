"""The embedding point: a Kit holds plugins, plans and trains; nothing is global, nothing is printed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorakit import launched
from lorakit import plugins as finding
from lorakit.control import Control
from lorakit.errors import ConfigError, PluginError
from lorakit.plugins import Plugin, call, manager
from lorakit.registry import Shelves

if TYPE_CHECKING:  # the configuration models are imported by the methods that need them
    import click

    from lorakit.config import Layer
    from lorakit.engine.lora_export import Exported
    from lorakit.engine.trials import Examined
    from lorakit.estimate.figures import Estimate
    from lorakit.estimate.rates import Rates
    from lorakit.events import Event
    from lorakit.evidence import Likeness
    from lorakit.importers.report import Imported
    from lorakit.judges import Answer, Judge, Question
    from lorakit.lora_facts import Facts
    from lorakit.lora_order import Order
    from lorakit.plan import Plan
    from lorakit.problem import Problem
    from lorakit.request import Request


class Kit:
    """Plugins, and what can be done with them.

    Installed plugins are found by entry point unless `discover` is False; `plugins` adds objects with hook
    implementations, `files` Python files, and `without` leaves installed ones out by name.
    """

    def __init__(
        self,
        *,
        plugins: Mapping[str, object] | None = None,
        files: Iterable[Path] = (),
        without: Iterable[str] = (),
        discover: bool = True,
    ) -> None:
        found = finding.discover(without, files) if discover else finding.core(files)
        found += [Plugin(name, "", module) for name, module in (plugins or {}).items()]
        self.plugins: Sequence[Plugin] = tuple(found)
        self.shelves = Shelves()
        finding.register(manager(self.plugins), self.shelves)

    def request(self, *layers: Layer | Mapping[str, Any]) -> Request:
        """What the layers ask for together with their preset; a plain mapping is what the user asks for."""
        from lorakit import config
        from lorakit.config import Layer

        made = [layer if isinstance(layer, Layer) else Layer(layer, "the call") for layer in layers]
        return config.load(made, self.shelves.families, self.shelves.presets)

    def imported(
        self,
        file: Path,
        *,
        by: str | None = None,
        dataset: Path | None = None,
        family: str | None = None,
        variant: str | None = None,
    ) -> Imported:
        """Another trainer's configuration as settings, with the fate of every key.

        `by` names the importer, `dataset` a second file that describes the pictures, `family` and `variant` what the
        file is for where it does not say so.
        """
        from lorakit.importers import imported

        shelves, asked = self.shelves, {"by": by, "family": family, "variant": variant}
        return imported(file, shelves.importers, shelves.families, dataset=dataset, **asked)

    def plan(
        self, request: Request | Mapping[str, Any], *, gpu: str | None = None, memory: float | None = None
    ) -> Plan:
        """The plan of a request; its `problems` may hold errors, which `train` refuses.

        `gpu` and `memory` tell of the card as in `estimate`; where several do not hold the base each, it is sharded.
        """
        from lorakit import planner
        from lorakit.estimate import rates
        from lorakit.request import Request

        asked = request if isinstance(request, Request) else self.request(request)
        family = self.shelves.families.find(asked.settings.family, asked.where("family"))
        card = partial(rates.card, gpu, memory, asked.settings.model.device)
        return planner.decide(asked, self.shelves, self.plugins, manager(self.plugins, family), card)

    def estimate(
        self,
        plan: Plan,
        *,
        gpu: str | None = None,
        memory: float | None = None,
        price: float | None = None,
        hours: float | None = None,
    ) -> Estimate | None:
        """What the plan will take on a GPU by its name, or on this machine where `lorakit calibrate` measured it.

        `memory` is that of another GPU in GB, `price` that of an hour, `hours` what there are. None where the family
        does not tell the model's size.
        """
        from lorakit.estimate import rates
        from lorakit.estimate.make import Wanted, estimate

        family = self.shelves.families.find(plan.settings.family, "the plan")
        found = rates.wanted(gpu, memory, plan.settings.model.device)
        wanted = Wanted(memory=memory and memory * 1e9, price=price, hours=hours)
        return estimate(plan, family, self.shelves, found, wanted)

    def calibrate(self, device: str = "auto") -> Rates:
        """Measure this machine's device in under 30 s, and keep what was found for every later estimate."""
        from lorakit.engine.measuring import calibrate

        return calibrate(device)

    def train(self, plan: Plan, control: Control | None = None, *, trackers: Iterable[str] = ()) -> Iterator[Event]:
        """Carry the plan out; the run stops, saved, when the iterator is closed or `control.stop()` is called.

        `trackers` name where the run is shown too; one that fails becomes a warning. Of several processes the first
        yields the events. Where torchrun started them anew, the run goes on.
        """
        from lorakit.history import PLAN

        _refuse(plan.errors)
        if launched.restarts() and (plan.folder / PLAN).is_file():
            from lorakit.engine.run_folder import unfinished

            return self.resume(plan.folder, control, trackers=trackers) if unfinished(plan) else iter(())
        from lorakit.engine.starts import train

        return self._observed(plan, _reported(plan, train(plan, self.shelves, control or Control())), trackers)

    def resume(
        self,
        folder: Path,
        control: Control | None = None,
        changes: Iterable[Layer] = (),
        *,
        trackers: Iterable[str] = (),
    ) -> Iterator[Event]:
        """Go on with the run in `folder` from its newest whole checkpoint.

        `changes` are planned anew over what the run was planned with; RunError names what may not change.
        """
        from lorakit.engine.starts import resume

        plan, told = self.resumed(folder, changes)
        events = resume(folder, plan, self.shelves, control or Control(), told)
        return self._observed(plan, _reported(plan, events), trackers)

    def resumed(self, folder: Path, changes: Iterable[Layer] = ()) -> tuple[Plan, tuple[str, ...]]:
        """The plan that the run in `folder` goes on with, and each change in words; nothing is written."""
        from lorakit.changes import asked_again, compared, on_gpus
        from lorakit.engine.run_folder import read_plan

        plan = read_plan(folder)
        if not (wanted := on_gpus(plan, tuple(changes))):
            return plan, ()
        family = self.shelves.families.find(plan.settings.family, "the plan")
        made, told = compared(plan, self.plan(asked_again(plan, wanted, family)))
        _refuse(made.errors)
        return made, told

    def recover(
        self,
        plan: Plan,
        file: Path,
        control: Control | None = None,
        *,
        rank: int = 16,
        samples: int = 256,
        updates: int = 300,
    ) -> Iterator[Event]:
        """Make an accuracy recovery adapter for the plan's model and quantization in `file`.

        `samples` inputs are shown, of the plan's pictures where it has any; after its blocks all layers are fitted
        together in `updates` updates. A stopped making goes on when called again.
        """
        from lorakit.checks import NO_PICTURES

        _refuse([problem for problem in plan.errors if problem.message != NO_PICTURES])
        if plan.settings.train.gpus > 1:
            raise ConfigError("a recovery adapter is made on one GPU", fix="Leave train.gpus out, and torchrun.")
        if plan.settings.quantization.name == "none":
            raise ConfigError("full precision needs no recovery", fix="Name a quantization: int8, int4 or int2.")
        if plan.settings.quantization.recovery is not None:
            raise ConfigError("a recovery adapter is to be made, and quantization.recovery names one already")
        from lorakit.engine.fitting import Recipe
        from lorakit.engine.recovery import recover

        events = recover(
            plan, self.shelves, control or Control(), file, Recipe(rank=rank, samples=samples, updates=updates)
        )
        return self._observed(plan, events)

    def inspect(self, file: Path, family: str | None = None) -> Facts:
        """What a LoRA file is, whoever made it; `family` where its names do not tell."""
        from lorakit import lora_facts

        if family is not None:
            self.shelves.families.find(family, "--family")
        return lora_facts.read(file, self.shelves.families, family)

    def norms(self, facts: Facts) -> dict[str, float]:
        """How much a LoRA changes each of its layers, by their names in the file: the Frobenius norm of B A."""
        from lorakit.engine.lora_norms import norms

        return norms(facts)

    def export(self, files: Sequence[Facts], order: Order, out: Path) -> Exported:
        """Write LoRA files anew as one, in another layout, number format or rank, as the order says."""
        from lorakit.engine.lora_export import export

        return export(files, order, out)

    def drawing(
        self, file: Path, changes: Sequence[Layer] = (), *, family: str | None = None, run: Path | None = None
    ) -> tuple[Facts, Plan]:
        """A LoRA file, or the newest of a run's folder, and the plan of drawing with it; `changes` are asked for."""
        from lorakit import drawing

        if run is None and file.is_dir():
            file = drawing.latest(file)
        run = run or drawing.run_of(file)
        facts = self.inspect(file, family or (drawing.family_of(run) if run else None))
        asked = drawing.request(facts, changes, run=run)
        return facts, drawing.checked(self.plan(self.request(*asked)))

    def sample(
        self, plan: Plan, facts: Facts, strength: float, places: Sequence[Path], control: Control | None = None
    ) -> Iterator[Event]:
        """Draw every prompt of a plan that `drawing` made, with its file at this strength, into `places`."""
        from lorakit.engine.sample import sample

        return sample(plan, self.shelves, control or Control(), facts, strength, places)

    def grid(
        self,
        run: Path,
        changes: Sequence[Layer] = (),
        *,
        checkpoints: Sequence[int] = (),
        strengths: Sequence[float] = (),
        guidances: Sequence[float] = (),
        control: Control | None = None,
    ) -> Iterator[Event]:
        """Draw a run's checkpoints at strengths and guidances into its folder `grid`, and all of them on one sheet.

        What is not said is that of `lorakit.grid`; `changes` are asked for in sampling. What was drawn is kept.
        """
        from lorakit import grid

        want = grid.wanted(run, checkpoints, strengths)
        first = next(iter(want.files.values()))
        _, plan = self.drawing(first, changes, run=run)
        facts = {update: self.inspect(file, plan.settings.family) for update, file in want.files.items()}
        columns, note = grid.guidances(plan, self.shelves.families[plan.settings.family], guidances)
        from lorakit.engine.grid import draw

        want = replace(want, guidances=columns)
        return draw(plan, self.shelves, control or Control(), run, want, facts, note)

    def likeness(self, run: Path, judges: Sequence[Path]) -> tuple[Likeness, ...]:
        """What DINOv2 or CLIP models in local folders say of a run's previews; kept in the run's folder."""
        from lorakit import evidence, history
        from lorakit.judges import read

        def ask(judge: Judge, questions: Sequence[Question]) -> Sequence[Answer]:
            from lorakit.engine.judging import answers

            return answers(judge, questions)

        found = history.read(run)
        chosen = read(judges)
        return evidence.likeness(found, evidence.judged(found), chosen, ask) if chosen else ()

    def doctor(self, output: Path) -> Iterator[Examined]:
        """What this machine can do, looked at one thing after another; runs would be saved in `output`."""
        from lorakit.engine.doctor import examine

        return examine(self.shelves, output)

    def commands(self, group: click.Group) -> None:
        """Let every plugin add its commands to `group`; a command twice is a PluginError naming both plugins."""
        known, owners = dict(group.commands), dict.fromkeys(group.commands, finding.CORE)
        for answer in call(manager(self.plugins), "register_commands", cli=group):
            for name, command in group.commands.items():
                if known.setdefault(name, command) is not command:
                    raise PluginError(
                        f"the command '{name}' is brought by two plugins, {owners[name]} and {answer.owner}",
                        fix=f"Leave one out: `lorakit --without {answer.owner} ...`.",
                    )
                owners.setdefault(name, answer.owner)

    def _observed(self, plan: Plan, events: Iterator[Event], trackers: Iterable[str] = ()) -> Iterator[Event]:
        from lorakit.observers import observed

        if names := tuple(trackers):
            from lorakit.trackers import chosen, made, tracked

            events = tracked(events, {part.name: partial(made, part, plan) for part in chosen(names, self.shelves)})
        family = self.shelves.families[plan.settings.family]
        return observed(events, plan, manager(self.plugins, family))


def _reported(plan: Plan, events: Iterator[Event]) -> Iterator[Event]:
    if not plan.settings.save.report:
        return events
    from lorakit.report import reported

    return reported(events, plan.folder)


def _refuse(errors: Sequence[Problem]) -> None:
    if errors:
        first, *more = errors
        raise ConfigError(first.message, fix=f"{len(more)} more errors; see `lorakit plan`" if more else "")
