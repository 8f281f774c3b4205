"""What may change when a run goes on: how long it is, what previews show, what is saved. Everything else may not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lorakit import config, gpus, launched
from lorakit.config import Layer, Table, leaves
from lorakit.errors import RunError
from lorakit.family import Family
from lorakit.plan import DERIVED, Plan
from lorakit.request import Request

OPEN = ("train.updates", "train.epochs", "train.timeout", "train.sharding", "speed.graphs", "sampling.", "save.")
"""Settings, and beginnings of settings, that may change; so may `train.gpus`, as long as all of them take as much."""

PLACES = ("name", "output")
"""Settings that say where the run lies, which follow it when it is moved."""


def fixed(plan: Plan) -> dict[str, Any]:
    """The settings that a run keeps for its whole life, by dotted name, as JSON values."""
    found = gpus.together(dict(leaves(plan.settings.model_dump(mode="json"))))
    return {name: value for name, value in found.items() if not name.startswith(OPEN) and name not in PLACES}


def refuse_changed(plan: Plan, then: Mapping[str, Any]) -> None:
    """Raise RunError where a setting of the plan that may not change is not what it was `then`, naming each."""
    now, then = fixed(plan), gpus.together(then)
    told = [
        f"{name} = {now[name]!r}, and {was!r} then" for name, was in then.items() if name in now and now[name] != was
    ]
    if told:
        raise RunError(
            f"the plan is not the one that the run began with: {'; '.join(told)}",
            why=f"only {_open()} may change under a run",
            fix="Put back what was changed, or start a new run with another --name.",
        )


def refuse_other(plan: Plan, begun: Plan) -> None:
    """Raise RunError where the plan is not that of the run that was begun in its folder, whatever number of GPUs."""
    refuse_changed(plan, {name: value for name, value in fixed(begun).items() if name != gpus.BATCH})


def on_gpus(plan: Plan, changes: Sequence[Layer]) -> Sequence[Layer]:
    """The changes, and what as many GPUs as were asked for, or started, mean for the plan's run."""
    said = {name: value for layer in changes for name, value in leaves(layer.table)}
    wanted = said.get("train.gpus", launched.count())
    if wanted in (None, plan.settings.train.gpus) or "train.batch_size" in said:
        return changes
    return (*changes, Layer(gpus.others(plan, wanted), "the number of GPUs"))


def asked_again(plan: Plan, changes: Sequence[Layer], family: Family) -> Request:
    """The request that means the plan, with changes over it."""
    table: Table = plan.settings.model_dump(mode="json", exclude_none=True)
    for name in ("updates", "epochs"):
        choice = plan.choices.get(f"train.{name}")
        if choice and choice.because == DERIVED:
            del table["train"][name]
    negative = plan.choices.get("sampling.negative")
    if negative and negative.because == "default":  # nobody asked for it, and some variants refuse it
        del table["sampling"]["negative"]
    said = {name: value for layer in changes for name, value in leaves(layer.table)}
    if said.get("train.gpus") == 1:  # one process waits for no other, and shares with none
        table["train"].pop("timeout", None)
        table["train"].pop("sharding", None)
    if "sampling.prompts" in said:  # the references were those of other prompts
        table["sampling"].pop("references", None)
    return config.over(Layer(table, str(plan.folder / "plan.json")), changes, family)


def compared(old: Plan, new: Plan) -> tuple[Plan, tuple[str, ...]]:
    """The new plan with the old one's reasons where nothing changed, and each change in words.

    RunError where something changed that may not.
    """
    if old.dataset != new.dataset:
        raise RunError(
            "the data are not those that the plan was made for",
            fix="Put them back as they were, or start a new run with another --name.",
        )
    refuse_changed(new, fixed(old))
    before = {name: choice for name, choice in old.choices.items() if name in new.choices}
    kept = {name: choice for name, choice in before.items() if choice.value == new.choices[name].value}
    return new.model_copy(update={"choices": {**new.choices, **kept}}), tuple(_told(old, new))


def _told(old: Plan, new: Plan) -> Iterator[str]:
    was, now = (dict(leaves(plan.settings.model_dump(mode="json"))) for plan in (old, new))
    for name in now:
        if name in was and was[name] != now[name]:
            yield f"{name} = {_shown(now[name])}, was {_shown(was[name])}"


def _shown(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else repr(value)


def _open() -> str:
    return ", ".join(f"{name}*" if name.endswith(".") else name for name in OPEN)
