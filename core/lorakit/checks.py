"""What core itself finds odd about a plan: values that are allowed, and rarely meant."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lorakit import jsontext, workflow
from lorakit.dataset import Dataset, Sizing, previewed
from lorakit.errors import ConfigError, ModelError
from lorakit.family import Family, Variant
from lorakit.plan import Plan
from lorakit.problem import Problem
from lorakit.registry import Part
from lorakit.request import Request
from lorakit.single_file import PICKLED, header
from lorakit.words import count

TOY = "toy"

NO_PICTURES = "no pictures are named: say --data FOLDER, or write [[data]] in the configuration"


def core(plan: Plan, family: Family, dataset: Dataset) -> Iterator[Problem]:
    """Problems that concern every family."""
    yield from _captions(plan, family, dataset)
    yield from _data(plan)
    yield from _length(plan)
    yield from _sizes(plan, family)
    misfit = workflow.misfit(plan, family)
    if misfit:
        yield Problem(misfit, "error")


def _captions(plan: Plan, family: Family, dataset: Dataset) -> Iterator[Problem]:
    """Texts that are certainly cut: a word is at least one token, and two tokens mark beginning and end."""
    if family.text_tokens is None:
        return
    texts = dict.fromkeys([*(sample.caption for sample in dataset.samples), *plan.settings.sampling.prompts])
    long = [text for text in texts if len(re.findall(r"\w+", text)) > family.text_tokens - 2]
    if long:
        yield Problem(
            f"{count(len(long), 'text')} of over {family.text_tokens - 2} words: "
            f"the text encoder of {family.title} reads {family.text_tokens} tokens, and the rest is cut, as of "
            f"'{long[0][:40]}…'"
        )


def _data(plan: Plan) -> Iterator[Problem]:
    sums = plan.arithmetic
    if not plan.settings.data:
        yield Problem(NO_PICTURES, "error")
    elif short := sums.batches_per_epoch * plan.settings.train.global_batch - sums.passes_per_epoch:
        yield Problem(
            f"batches are not all full: {short} places stay empty per epoch, because the last batch of each shape "
            "takes what is left"
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


def source(table: dict[str, Any], family: Family, variant: Variant, request: Request) -> None:
    """A local folder must hold every component, and one file be a model of the family; hub names are checked later."""
    source, config = table["model"]["source"], table["model"]["config"]
    file = None if source == TOY else _local(source, request, "model.source")
    if file is None or not file.is_file():
        if config is not None:
            no_effect(request, "model.config", "only a model.source that is one file has its configuration elsewhere")
        folder = file
    else:
        problem = family.file_problem(header(file, request.where("model.source")))
        if problem:
            raise ModelError(
                f"the model file {source} cannot be taught",
                where=request.where("model.source"),
                why=problem,
                fix=f"Name another file, a model folder, or leave it out for {variant.source}.",
            )
        folder = _local(config, request, "model.config")
    if folder is not None:
        _complete(folder, family, variant, request.where("model.source" if folder == file else "model.config"))
        if folder == file:  # what is in one file may be marked to predict otherwise than its configuration says
            _predicts(folder, table["scheduler"]["prediction"], request)


def _local(name: str, request: Request, setting: str) -> Path | None:
    """The file or folder called `name`; None where it may be a hub repository."""
    path = Path(name).expanduser()
    if path.exists():
        return path
    if path.is_absolute() or name.startswith((".", "~")) or name.count("/") != 1:
        raise ModelError(
            f"there is no model folder or file {name}",
            where=request.where(setting),
            fix="Name a folder, a hub repository like owner/name, or toy.",
        )
    return None


def _complete(folder: Path, family: Family, variant: Variant, where: str) -> None:
    needed = (*family.components, *variant.components)
    missing = [name for name in needed if not (folder / name).is_dir()]
    if missing:
        raise ModelError(
            f"the model folder {folder} lacks {', '.join(missing)}",
            where=where,
            why=f"{family.title} needs the sub-folders {', '.join(needed)}",
            fix="Download the whole repository in diffusers layout.",
        )


def _predicts(folder: Path, asked: str | None, request: Request) -> None:
    """What the settings say that a model predicts must be what its own scheduler says, where that can be read now."""
    try:
        own = jsontext.parse((folder / "scheduler" / "scheduler_config.json").read_text(encoding="utf-8"))[
            "prediction_type"
        ]
    except (OSError, ValueError, KeyError, TypeError):
        return  # it is read again, and refused in words, when the model is loaded
    if asked is not None and asked != own:
        raise prediction_error(asked, own, request.where("scheduler.prediction"))


def prediction_error(asked: str, own: str, where: str) -> ModelError:
    """That settings and model disagree on what is predicted."""
    return ModelError(
        f"the model predicts {own}, and the settings say {asked}",
        where=where,
        why="the model's own scheduler_config.json is what it was trained with",
        fix="Leave scheduler.prediction out, or mend prediction_type there if the file is wrong.",
    )


OPTIONAL = ("mean", "std", "shift", "prediction", "min_snr_gamma", "noise_offset")
"""Settings of the scheduler that only some read."""


def unread(table: dict[str, Any], scheduler: Part, variant: Variant, request: Request) -> None:
    """Refuse settings that nothing would read: an option that has no effect is not accepted."""
    for name in OPTIONAL:
        if table["scheduler"][name] is not None and name not in scheduler.settings:
            reads = ", ".join(scheduler.settings) or "none of these"
            no_effect(request, f"scheduler.{name}", f"'{scheduler.name}' reads {reads}")
    text = table["text_encoder"]
    if text["train"] and text["cache"]:
        raise ConfigError(
            "a trained text encoder cannot be cached",
            where=request.where("text_encoder.cache") or request.where("text_encoder.train"),
            why="it answers otherwise after every update, and cached text would stay as it was",
            fix="Leave text_encoder.cache out, or set text_encoder.train = false.",
        )
    if text["train"] and text["device"] == "cpu":
        raise ConfigError(
            "a trained text encoder cannot stay on the CPU",
            where=request.where("text_encoder.device") or request.where("text_encoder.train"),
            why="every pass goes through it, and its adapter lies where training is",
            fix="Leave text_encoder.device out, or set text_encoder.train = false.",
        )
    if text["learning_rate"] is not None and not text["train"]:
        no_effect(request, "text_encoder.learning_rate", "the text encoder is not trained")
    if table["train"]["group_by_length"] and table["train"]["batch_size"] * (table["train"]["gpus"] or 1) == 1:
        no_effect(request, "train.group_by_length", "a batch is one picture")
    if table["train"]["guidance"] is not None and variant.guidance != "embedded":
        no_effect(request, "train.guidance", "this variant is not told of guidance")
    if variant.guidance == "none" and table["sampling"]["guidance"] not in (None, 1):
        no_effect(request, "sampling.guidance", "this variant draws without guidance")
    if variant.guidance != "true" and request.where("sampling.negative"):
        no_effect(request, "sampling.negative", "this variant is not guided by a negative prompt")


def no_effect(request: Request, name: str, why: str, setting: str = "") -> None:
    """Refuse a setting that changes nothing; `setting` is its name where `name` says more than that."""
    raise ConfigError(
        f"{name} would have no effect", where=request.where(setting or name), why=why, fix="Leave it out."
    )


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
    if Path(file).suffix.lower() in PICKLED:
        raise ModelError(
            f"the recovery adapter {file} is pickled",
            where=where,
            why="reading a pickle runs whatever program its author put in it",
            fix="Use a .safetensors file.",
        )
    if quantization["name"] == "none":
        raise ConfigError(
            "a recovery adapter corrects a quantized base, and quantization.name is 'none'",
            where=where,
            fix="Leave quantization.recovery out.",
        )


def held_out(request: Request) -> int | str:
    """How many pictures to hold out; refuses to hold out those that nobody would look at."""
    asked = request.settings.validation
    if asked.every == 0 and asked.pictures not in (0, "auto"):
        raise ConfigError(
            f"validation.pictures = {asked.pictures} and validation.every = 0 are at odds",
            where=request.where("validation.pictures"),
            why="pictures would be held out and never looked at",
            fix="Leave one of them out.",
        )
    return 0 if asked.every == 0 else asked.pictures


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
