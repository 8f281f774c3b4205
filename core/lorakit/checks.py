"""What core itself finds odd about a plan: values that are allowed, and rarely meant."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lorakit import workflow
from lorakit.dataset import Sizing, previewed
from lorakit.errors import ConfigError, ModelError
from lorakit.family import Family, Variant
from lorakit.plan import Plan
from lorakit.problem import Problem
from lorakit.registry import Part
from lorakit.request import Request
from lorakit.rules import Value

TOY = "toy"

NO_PICTURES = "no pictures are named: say --data FOLDER, or write [[data]] in the configuration"


def core(plan: Plan, family: Family) -> Iterator[Problem]:
    """Problems that concern every family."""
    yield from _data(plan)
    yield from _length(plan)
    yield from _sizes(plan, family)
    misfit = workflow.misfit(plan, family)
    if misfit:
        yield Problem(misfit, "error")


def _data(plan: Plan) -> Iterator[Problem]:
    if not plan.settings.data:
        yield Problem(NO_PICTURES, "error")
    elif plan.arithmetic.batches_per_epoch * plan.settings.train.batch_size > plan.arithmetic.passes_per_epoch:
        short = plan.arithmetic.batches_per_epoch * plan.settings.train.batch_size - plan.arithmetic.passes_per_epoch
        yield Problem(
            f"batches are not all full: {short} places stay empty per epoch, because pictures of different shapes "
            "do not share a batch"
        )
    if not plan.settings.trigger and plan.settings.data:
        yield Problem("no trigger word is named; what is taught will answer to the captions alone")


def _length(plan: Plan) -> Iterator[Problem]:
    train, updates = plan.settings.train, plan.settings.train.updates
    if not plan.arithmetic.images:
        return
    horizon = 1 / (1 - train.ema) if train.ema else 0.0
    if horizon > 0.3 * updates:
        yield Problem(
            f"train.ema = {train.ema:g} averages over about {horizon:.0f} updates and the run has {updates}: "
            f"even with its warm-up the saved adapter lags behind; {1 - 20 / max(updates, 40):.3g} would suit"
        )
    if plan.settings.optimizer.warmup >= updates:
        yield Problem(
            f"optimizer.warmup = {plan.settings.optimizer.warmup} takes the whole run of {updates} updates, so the "
            "learning rate never reaches its peak"
        )
    saves = train.epochs if plan.settings.save.every == "epoch" else updates / max(1, plan.settings.save.every)
    if plan.settings.save.every and saves > plan.settings.save.keep:
        yield Problem(
            f"{saves:.0f} checkpoints will be saved and the newest {plan.settings.save.keep} kept (save.keep)"
        )


def _sizes(plan: Plan, family: Family) -> Iterator[Problem]:
    settings = plan.settings
    if not family.variants[settings.variant].references and settings.train.reference_resolution is not None:
        yield Problem("train.reference_resolution has no effect: this variant takes no reference pictures")
    for name in ("width", "height"):
        side = getattr(settings.sampling, name)
        if side % family.side_multiple:
            yield Problem(
                f"sampling.{name} = {side} is not a multiple of {family.side_multiple}, as {family.title} needs",
                "error",
            )
    if settings.train.resolution < family.side_multiple:
        yield Problem(f"train.resolution = {settings.train.resolution} is less than one patch of pixels", "error")
    if settings.model.source == "toy" and settings.train.resolution > 2 * family.toy_resolution:
        yield Problem(
            f"the toy model was made for {family.toy_resolution} pixels; train.resolution = "
            f"{settings.train.resolution} will be slow and mean nothing: use --preset toy"
        )


def source(source: Value, family: Family, variant: Variant, request: Request) -> None:
    """A local folder must hold every component; a hub name is checked when it is loaded."""
    assert isinstance(source, str)
    if source == TOY:
        return
    folder = Path(source).expanduser()
    where = request.where("model.source")
    if not folder.exists():
        if folder.is_absolute() or source.startswith((".", "~")) or source.count("/") != 1:
            raise ModelError(
                f"there is no model folder {source}",
                where=where,
                fix="Name a folder, a hub repository like owner/name, or toy.",
            )
        return
    needed = (*family.components, *variant.components)
    missing = [name for name in needed if not (folder / name).is_dir()]
    if missing:
        raise ModelError(
            f"the model folder {source} lacks {', '.join(missing)}",
            where=where,
            why=f"{family.title} needs the sub-folders {', '.join(needed)}",
            fix="Download the whole repository in diffusers layout.",
        )


OPTIONAL = ("mean", "std", "shift", "prediction", "min_snr_gamma", "noise_offset")
"""Settings of the scheduler that only some read."""


def unread(table: dict[str, Any], scheduler: Part, variant: Variant, request: Request) -> None:
    """Refuse settings that nothing would read: an option that has no effect is not accepted."""
    for name in OPTIONAL:
        if table["scheduler"][name] is not None and name not in scheduler.settings:
            reads = ", ".join(scheduler.settings) or "none of these"
            _no_effect(request, f"scheduler.{name}", f"'{scheduler.name}' reads {reads}")
    text = table["text_encoder"]
    if text["train"] and text["cache"]:
        raise ConfigError(
            "a trained text encoder cannot be cached",
            where=request.where("text_encoder.cache") or request.where("text_encoder.train"),
            why="it answers otherwise after every update, and cached text would stay as it was",
            fix="Leave text_encoder.cache out, or set text_encoder.train = false.",
        )
    if text["learning_rate"] is not None and not text["train"]:
        _no_effect(request, "text_encoder.learning_rate", "the text encoder is not trained")
    if table["train"]["guidance"] is not None and variant.guidance != "embedded":
        _no_effect(request, "train.guidance", "this variant is not told of guidance")
    if variant.guidance == "none" and table["sampling"]["guidance"] not in (None, 1):
        _no_effect(request, "sampling.guidance", "this variant draws without guidance")
    if variant.guidance != "true" and request.where("sampling.negative"):
        _no_effect(request, "sampling.negative", "this variant is not guided by a negative prompt")


def no_table(table: dict[str, Any], family: Family) -> str:
    """Why modulation cannot be worked out ahead, if it cannot."""
    if not family.modulation:
        return f"{family.title} has no modulation layers"
    if table["quantization"]["recovery"] is not None:
        return "the recovery adapter corrects quantized modulation layers too"
    if family.modulated_by_text and table["text_encoder"]["train"]:
        return "its modulation depends on the text encoder, which is trained"
    return ""


def modulation(table: dict[str, Any], family: Family, request: Request) -> None:
    """Refuse to work modulation out ahead where it cannot be, or to say how where there is none."""
    asked, obstacle = request.settings.speed.modulation, no_table(table, family)
    if obstacle and (asked == "table" or (asked and not family.modulation)):
        raise ConfigError(
            f"speed.modulation = '{asked}' is not possible",
            where=request.where("speed.modulation"),
            why=obstacle,
            fix="Leave it out.",
        )


def _no_effect(request: Request, name: str, why: str) -> None:
    raise ConfigError(f"{name} would have no effect", where=request.where(name), why=why, fix="Leave it out.")


def recovery(quantization: dict[str, Any], request: Request) -> None:
    """The adapter is read when the model is loaded; that there is one can be said now."""
    file, where = quantization["recovery"], request.where("quantization.recovery")
    if file is None:
        return
    if not Path(file).is_file():
        raise ModelError(
            f"there is no recovery adapter {file}",
            where=where,
            fix=f"Make one with `lorakit recover --family {request.settings.family} --quantization "
            f"{quantization['name']} -o {file}`, or check the path.",
        )
    if quantization["name"] == "none":
        raise ConfigError(
            "a recovery adapter corrects a quantized base, and quantization.name is 'none'",
            where=where,
            fix="Leave quantization.recovery out.",
        )


def previews(prompts: int, given: Sequence[Sequence[str]], sizing: Sizing, request: Request) -> None:
    """Refuse references of previews that do not fit the prompts, or that the variant does not take."""
    where = request.where("sampling.references")
    if len(given) != prompts:
        raise ConfigError(
            f"sampling.references has {len(given)} lists, and sampling.prompts has {prompts} prompts",
            where=where,
            fix="Give each prompt its list, [] for none.",
        )
    if max(map(len, given), default=0) > sizing.most:
        raise ConfigError(
            f"sampling.references has {max(map(len, given))} pictures for one prompt",
            where=where,
            why=f"this variant takes {sizing.most or 'none'}",
            fix="Leave some out.",
        )
    for some in given:
        previewed(some, sizing)
