"""What the command-line trainers share: the optimizer, the course of the rate, and how noise levels are drawn."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from lorakit.importers.commands import Command
from lorakit.importers.draft import Draft, number, text
from lorakit.importers.leaf import Leaf
from lorakit.importers.names import Meant
from lorakit.importers.shared import precision

SCHEDULES = {"constant": "constant", "constant_with_warmup": "constant", "linear": "linear", "cosine": "cosine"}
EIGHT_BIT = ("adamw8bit", "pagedadamw8bit", "adam8bit")


def of(command: Command) -> Iterator[Leaf]:
    """The keys of a command line: the script's own, and its launcher's by `accelerate.NAME`."""
    yield from (replace(leaf, key=f"accelerate.{leaf.key}") for leaf in command.launcher)
    yield from command.arguments


def launcher(draft: Draft) -> None:
    """What `accelerate launch` is told: the number format counts where the script says none; the rest is for it."""
    if draft.has("mixed_precision"):
        precision(draft, "mixed_precision")
        draft.tell("accelerate.mixed_precision", "dead", "the script's own mixed_precision counts")
    else:
        precision(draft, "accelerate.mixed_precision")
    draft.unsaid("mixed_precision", "train.precision", "fp32")
    for leaf in list(draft.below("accelerate.")):
        draft.tell(leaf.key, "refused", "how processes are started; lorakit trains in one, on one GPU")


def others(draft: Draft, commands: Iterable[Command], chosen: Command) -> None:
    """Say of the file's other commands that they are not run."""
    rest = [f"{one.script} (line {one.line})" for one in commands if one is not chosen and one.script]
    if rest:
        draft.findings.append(
            f"read from line {chosen.line}, {chosen.script or 'its arguments'}; not read: {', '.join(rest)}"
        )
    if chosen.strays:
        draft.findings.append(f"words without a flag were passed over: {' '.join(chosen.strays)}")


def optimizer(draft: Draft, key: str, eight_bit: str) -> None:
    """The optimizer and whether its moments are in 8 bits."""
    name = draft.get(key, text, "AdamW")
    plain = name.lower().rpartition(".")[2]
    small = plain in EIGHT_BIT or (plain == "adamw" and draft.get(eight_bit, bool, False))
    known = plain in ("adamw", "adamw8bit")
    ours = "adamw8bit" if small or plain.endswith("8bit") else "adamw"
    draft.settle(key, "optimizer.name", ours, "" if known else f"lorakit has no {name}; check the learning rate")
    draft.tell(eight_bit, "carried", "", f"optimizer.name = {ours}")


def schedule(draft: Draft, key: str, warmup: str, usual_warmup: int, updates: int | None) -> None:
    """The course of the learning rate, and its warm-up: in updates, or as a share of them."""
    name = draft.get(key, text, "constant").lower()
    ours = SCHEDULES.get(name, "cosine" if "cosine" in name else "linear" if name == "polynomial" else "constant")
    draft.settle(key, "optimizer.schedule", ours, "" if name in SCHEDULES else f"lorakit has no {name}")
    if name == "constant":
        draft.tell(warmup, "dead", "the course constant has no warm-up there (constant_with_warmup has)")
        return
    value = draft.get(warmup, _share, float(usual_warmup))
    if 0 < value < 1 and updates is None:
        draft.tell(warmup, "refused", "a share of updates that only a plan knows: say optimizer.warmup in updates")
        return
    share = 0 < value < 1 and updates is not None
    count = round(value * (updates or 0)) if share else round(value)
    draft.settle(warmup, "optimizer.warmup", max(0, count), "a share of the updates" if share else "")


def _share(value: object) -> float:
    """A number, or a share in per cent as musubi-tuner takes it."""
    if isinstance(value, str) and value.strip().endswith("%"):
        return number(value.strip()[:-1]) / 100
    return number(value)


def levels(draft: Draft, about: Meant | None, scheme: str, mean: str, std: str) -> None:
    """Noise levels of the diffusers kind: uniform, or logit-normal with a mean and a spread."""
    if about is not None and not about.flows:
        for key in (scheme, mean, std):
            draft.tell(key, "dead", "it is read for flow matching only")
        return
    name = draft.get(scheme, text, "none").lower()
    if name == "logit_normal":
        draft.put(scheme, "scheduler.timesteps", "logit-normal")
        for key, setting, usual in ((mean, "scheduler.mean", 0.0), (std, "scheduler.std", 1.0)):
            draft.settle(key, setting, draft.get(key, number, usual))
        return
    if name == "none":
        draft.settle(scheme, "scheduler.timesteps", "uniform")
    else:
        draft.tell(scheme, "refused", f"no weights by {name}: levels are drawn evenly, and count the same")
        draft.unsaid(scheme, "scheduler.timesteps", "uniform")
    for key in (mean, std):
        draft.tell(key, "dead", "it is read with weighting_scheme logit_normal only")
