"""The [train] part of an ai-toolkit file: how long, how often, and how gradients become updates."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING

from lorakit.importers.conditioning import text_encoder, weighted
from lorakit.importers.draft import Draft, flag, number, positive, text, texts, whole
from lorakit.importers.names import Meant
from lorakit.importers.report import shown
from lorakit.importers.shared import pictures_in, precision, repeats_of
from lorakit.words import count

if TYPE_CHECKING:
    from lorakit.importers.document import Document

EPOCHS = ("train.epochs", "train.num_epochs", "train.max_train_epochs", "training.epochs")
OPTIMIZERS = {
    "adamw": "adamw",
    "adam": "adamw",
    "adamw8bit": "adamw8bit",
    "adam8bit": "adamw8bit",
    "adamw8": "adamw8bit",
}
TIMESTEPS = {"sigmoid": "sigmoid", "linear": "uniform", "weighted": "weighted", "shift": "shift"}
SCHEDULES = {"constant": "constant", "constant_with_warmup": "constant", "linear": "linear", "cosine": "cosine"}


@dataclass(frozen=True, slots=True)
class Length:
    """A run as ai-toolkit counts it: iterations of so many batches, and so many iterations for an update."""

    steps: int
    batch_size: int
    batches: int
    iterations: int

    @property
    def updates(self) -> int:
        """Optimizer updates of the whole run."""
        return ceil(self.steps / self.iterations)

    @property
    def passes(self) -> int:
        """Pictures through the model in the whole run."""
        return self.steps * self.batches * self.batch_size

    def every(self, steps: int) -> int:
        """The updates that so many iterations are."""
        return max(1, round(steps / self.iterations)) if steps else 0


def training(draft: Draft, about: Meant | None, document: Document) -> None:
    """Everything of [train] that depends on more than one key."""
    for key in ("training.steps", "optimizer.name", "optimizer.lr"):  # as people write them from memory
        _misplaced(draft, key)
    length = _length(draft)
    _every(draft, length, "save.save_every", "save.every", 1000)
    _every(draft, length, "sample.sample_every", "sampling.every", 100)
    _contradictions(draft, length, document)
    _optimizer(draft, length)
    _average(draft, length)
    _objective(draft, about)
    trained = draft.get("train.train_text_encoder", flag, False)
    rate = draft.setting("optimizer.learning_rate")  # ai-toolkit gives both the same
    text_encoder(draft, about, "train.train_text_encoder", trained=trained, usual=rate)
    weighted(draft, about, ("train.min_snr_gamma", "train.snr_gamma"), "train.noise_offset")
    unet = draft.get("train.train_unet", flag, True)
    draft.tell("train.train_unet", "carried" if unet else "refused", "the denoiser is what is taught, always")
    precision(draft, "train.dtype")
    if draft.get("train.disable_sampling", flag, False):
        draft.put("train.disable_sampling", "sampling.every", 0)
    draft.tell("train.disable_sampling", "carried", "off")


def _misplaced(draft: Draft, key: str) -> None:
    meant_by = {"training.steps": "train.steps", "optimizer.name": "train.optimizer", "optimizer.lr": "train.lr"}[key]
    counts = (
        f", and {meant_by} counts" if draft.has(meant_by) else f": {meant_by} is its key, and lorakit reads that alone"
    )
    draft.tell(key, "dead", f"ai-toolkit never reads it{counts}")


def _length(draft: Draft) -> Length:
    steps = draft.get("train.steps", positive, 1000)
    batches = draft.get("train.gradient_accumulation", positive, 1)
    iterations = draft.get("train.gradient_accumulation_steps", positive, 1)
    if batches > 1 and iterations > 1:
        draft.findings.append(
            "train.gradient_accumulation and train.gradient_accumulation_steps exclude each other in ai-toolkit, which "
            f"would stop; the first is taken: {batches} batches an update"
        )
        draft.tell("train.gradient_accumulation_steps", "changed", "train.gradient_accumulation counts")
        iterations = 1
    length = Length(steps, draft.get("train.batch_size", positive, 1), batches, iterations)
    inside = f" of {count(batches, 'batch')}" if batches > 1 else ""
    why = (
        f"{steps:,} iterations{inside} are {length.passes:,} passes and {length.updates:,} updates"
        if iterations > 1
        else ""
    )
    draft.settle("train.steps", "train.updates", length.updates, why)
    said = "train.gradient_accumulation" if batches > 1 else "train.gradient_accumulation_steps"
    cleared = (
        f"ai-toolkit clears the gradients before every iteration, so that its update learns from one of {iterations}; "
        "here they are averaged, as is meant"
    )
    draft.put(said, "train.accumulation", max(batches, iterations), cleared if iterations > 1 else "")
    if said != "train.gradient_accumulation":
        draft.tell("train.gradient_accumulation", "carried", "one batch an iteration")
    return length


def _every(draft: Draft, length: Length, key: str, setting: str, usual: int) -> None:
    steps = draft.get(key, whole, usual)
    every = length.every(max(0, steps))
    why = ""
    if length.iterations > 1:
        rounded = "" if steps % length.iterations == 0 else ", rounded"
        why = f"{steps:,} iterations are {every:,} updates{rounded}"
    draft.settle(key, setting, every, why)


def _contradictions(draft: Draft, length: Length, document: Document) -> None:
    """What the file says of its length in other ways, and the reading that was chosen."""
    said = next((key for key in EPOCHS if draft.has(key)), "")
    epochs = draft.get(said, number, 0.0) if said else 0.0
    repeated = list(_repeated(draft))
    passes = sum(repeats * pictures for repeats, pictures in repeated)
    named = any(repeats > 1 for repeats, _ in repeated)
    comment = _comment(draft, document, "save.save_every")
    if not (epochs or named or "epoch" in comment.lower()):
        return
    words = [_reading(draft, length)]
    if comment and "epoch" in comment.lower():
        words.append(f"The comment beside save_every says '{comment}', and ai-toolkit counts no epochs.")
    if passes:
        sums = " + ".join(f"{pictures} x {repeats}" for repeats, pictures in repeated)
        words.append(
            f"By the folders' repeats an epoch is {sums} = {passes:,} passes, so that is "
            f"{count(length.passes / passes, 'epoch')}."
        )
    elif named:
        words.append("How many epochs that is depends on the pictures, and those folders hold none here.")
    if epochs:
        words.append(_against(said, epochs, length, passes))
        draft.tell(said, "dead", f"ai-toolkit never reads it; {length.updates:,} updates are what train.steps says")
    words.append(
        f"Chosen: {length.updates:,} updates. Who means {epochs or 10:g} epochs writes train.epochs = {epochs or 10:g} "
        'in place of train.updates, and save.every = "epoch".'
    )
    draft.findings.append(" ".join(words))


def _reading(draft: Draft, length: Length) -> str:
    key = "gradient_accumulation" if length.batches > 1 else "gradient_accumulation_steps"
    grouped = f", which {key} = {max(length.iterations, length.batches)} makes {length.updates:,} updates"
    every = draft.setting("save.every")
    saves = f"; a checkpoint every {every:,} updates makes {length.updates // every:,}" if every else ""
    return (
        f"train.steps = {length.steps:,} counts iterations in ai-toolkit, not epochs: {length.passes:,} passes"
        f"{grouped if max(length.iterations, length.batches) > 1 else f' and {length.updates:,} updates'}{saves}."
    )


def _against(said: str, epochs: float, length: Length, passes: int) -> str:
    """The other reading's arithmetic: epochs of the folders, or of train.steps passes each where they are not here."""
    of_one, guess = (passes, "") if passes else (length.steps * length.batch_size, ", if train.steps is one epoch,")
    total = round(epochs * of_one)
    updates = ceil(total / (length.batch_size * length.batches * length.iterations))
    return f"{said} = {epochs:g} would be{guess} {total:,} passes and {updates:,} updates, which contradicts that."


def _repeated(draft: Draft) -> Iterator[tuple[int, int]]:
    """How often each folder is shown an epoch, as it is said or as its name says, and how many pictures it holds."""
    for leaf in list(draft.below("datasets[")):
        prefix, _, name = leaf.key.rpartition(".")
        if name in ("folder_path", "dataset_path") and isinstance(leaf.value, str):
            repeats = draft.get(f"{prefix}.num_repeats", positive, None) or repeats_of(leaf.value)
            yield repeats, pictures_in(leaf.value)


def _comment(draft: Draft, document: Document, key: str) -> str:
    leaf = draft.leaf(key)
    lines = document.text.splitlines()
    line = lines[leaf.line - 1] if leaf and 0 < leaf.line <= len(lines) else ""
    return line.partition("#")[2].strip()[:80]


def _optimizer(draft: Draft, length: Length) -> None:
    asked = draft.get("train.optimizer", text, "adamw").lower()
    name = OPTIMIZERS.get(asked, "adamw8bit" if asked.endswith("8bit") else "adamw")
    exact = asked in ("adamw", "adamw8bit")
    draft.settle("train.lr", "optimizer.learning_rate", draft.get("train.lr", number, 1e-6))
    draft.settle(
        "train.optimizer", "optimizer.name", name, "" if exact else f"lorakit has no {asked}; check the learning rate"
    )
    decay = draft.get("train.optimizer_params.weight_decay", number, 0.01)
    draft.settle(
        "train.optimizer_params.weight_decay",
        "optimizer.weight_decay",
        decay,
        "" if draft.has("train.optimizer_params.weight_decay") else "the default of torch and bitsandbytes",
    )
    betas = draft.get("train.optimizer_params.betas", _pair, None)
    if betas:
        draft.put("train.optimizer_params.betas", "optimizer.betas", betas)
    draft.settle(
        "train.optimizer_params.eps", "optimizer.epsilon", draft.get("train.optimizer_params.eps", number, 1e-6)
    )
    for leaf in list(draft.below("train.optimizer_params")):
        draft.tell(leaf.key, "refused" if leaf.value else "carried", "it is no setting of the optimizer here")
    schedule = draft.get("train.lr_scheduler", text, "constant").lower()
    ours = SCHEDULES.get(schedule, "cosine" if "cosine" in schedule else "constant")
    draft.settle(
        "train.lr_scheduler", "optimizer.schedule", ours, "" if schedule in SCHEDULES else f"lorakit has no {schedule}"
    )
    key = "train.lr_scheduler_params.num_warmup_steps"
    if "warmup" in schedule:
        steps = draft.get(key, whole, 1000)
        why = f"{steps:,} iterations" if length.iterations > 1 else ""
        draft.settle(key, "optimizer.warmup", length.every(max(0, steps)), why)
    else:
        draft.tell(key, "dead", "it is read with constant_with_warmup only")
    for leaf in list(draft.below("train.lr_scheduler_params")):
        draft.tell(
            leaf.key, "refused" if leaf.value else "carried", "it is no setting of the learning rate's course here"
        )


def _pair(value: object) -> list[float]:
    found = [number(one) for one in texts(value)]
    if len(found) != 2:
        raise ValueError(f"{shown(value)} is not a pair of numbers")
    return found


def _average(draft: Draft, length: Length) -> None:
    """The running average: what it does there, and what it comes to in a run of this length."""
    on, key = "train.ema_config.use_ema", "train.ema_config.ema_decay"
    decay = draft.get(key, number, 0.999)
    if not draft.get(on, flag, False):
        draft.tell(on, "carried", "off")
        draft.tell(key, "dead", "it is read with use_ema only")
    elif 0 < decay < 1:
        horizon, updates = 1 / (1 - decay), length.updates
        why = (
            f"it averages over about {horizon:,.0f} updates and the run has {updates:,}; ai-toolkit starts it at the "
            f"empty adapter, of which {decay**updates:.0%} would be left. Here it starts short and lengthens, and the "
            "last weights are saved too. "
        )
        short = 1 - 1 / max(2.0, 0.05 * updates)
        advice = f"Better 0, which is off, or at most {short:.3g}" if horizon > 0.05 * updates else ""
        draft.settle(key, "train.ema", decay, (why + advice).strip())
        draft.tell(on, "carried", "", f"train.ema = {decay:g}")
    else:
        draft.tell(key, "refused", "a decay is between 0 and 1")
        draft.tell(on, "refused", "without a decay there is no average")
    for leaf in list(draft.below("train.ema_config")):
        draft.tell(
            leaf.key,
            "carried" if leaf.value in (None, False, 1, 1.0) else "refused",
            "off, as here" if leaf.value in (None, False, 1, 1.0) else "the average here is a plain one",
        )


def _objective(draft: Draft, about: Meant | None) -> None:
    flows = about is None or about.flows
    asked = draft.get("train.noise_scheduler", text, "ddpm").lower()
    if asked == "flowmatch" and flows:
        draft.put("train.noise_scheduler", "scheduler.name", "flowmatch")
    elif asked == "ddpm" and not flows:
        draft.put("train.noise_scheduler", "scheduler.name", "ddpm")
    else:
        draft.tell("train.noise_scheduler", "changed", "the objective is the one that the family was trained with")
    way = draft.get("train.timestep_type", text, "sigmoid").lower()
    if not flows:
        draft.tell("train.timestep_type", "dead", "it is read for flow matching only")
        return
    ours = TIMESTEPS.get(way, "shift" if way.endswith("_shift") else "")
    if ours:
        why = "by the formula of the family" if way.endswith("_shift") else ""
        draft.settle("train.timestep_type", "scheduler.timesteps", ours, why)
    else:
        draft.tell(
            "train.timestep_type",
            "refused",
            "lorakit draws noise levels as sigmoid, uniform, logit-normal, shift or weighted",
        )
