"""The arguments and dataset files of kohya's trainers: sd-scripts and musubi-tuner."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from lorakit.family import Family
from lorakit.importers import kohya_keys as known
from lorakit.importers.commands import Command
from lorakit.importers.conditioning import text_encoder, told, weighted
from lorakit.importers.document import TOML, Document, read
from lorakit.importers.draft import Draft, flag, is_off, number, positive, text, texts
from lorakit.importers.keys import tell_all
from lorakit.importers.kohya_data import previews, subsets
from lorakit.importers.leaf import Leaf
from lorakit.importers.names import Meant, meant
from lorakit.importers.report import Imported, shown
from lorakit.importers.scripts import launcher, levels, of, optimizer, others, schedule
from lorakit.importers.shared import HALF, is_file, run_name, say_family, source
from lorakit.registry import Shelf

ARGUMENTS = {
    "network_module",
    "pretrained_model_name_or_path",
    "dit",
    "network_dim",
    "train_data_dir",
    "dataset_config",
}
DATA = (r"datasets\[", r"general\.")
MODELS = ("pretrained_model_name_or_path", "dit")
NOT_TRAINING = ("_cache_latents", "_cache_text_encoder_outputs", "_generate_image")
USUAL_UPDATES = 1600


class Kohya:
    """The importer `kohya`."""

    def recognizes(self, document: Document) -> bool:
        """A dataset TOML, a TOML of arguments, or a script that starts one of the trainers."""
        if document.path.suffix.lower() in TOML:
            keys = {leaf.key.rpartition(".")[2] for leaf in document.leaves}
            return document.has(DATA[0]) or len(keys & ARGUMENTS) >= 2
        return _training(document) is not None

    def read(
        self,
        document: Document,
        families: Shelf[Family],
        *,
        dataset: Document | None = None,
        given: Meant | None = None,
    ) -> Imported:
        """Arguments with the dataset file that they name, or either alone."""
        command = _training(document)
        arguments = list(_arguments(document, command))
        described = any(leaf.key.startswith(("datasets", "general.")) for leaf in arguments)
        named = dataset or _named(document, arguments, "dataset_config")
        if named is not None and not described:
            arguments += [replace(leaf, file=named.name) for leaf in named.leaves]
        draft = Draft("kohya", document.name, arguments)
        if command is not None:
            others(draft, document.commands, command)
        _told_files(draft, dataset, named, _named(document, arguments, "config_file"))
        about = _model(draft, families, command, given)
        _length(draft)
        _optimizer(draft)
        _objective(draft, about)
        _conditioning(draft, about)
        _rest(draft, about)
        subsets(draft)
        previews(draft, document, about)
        tell_all(draft, known.ARGUMENTS)
        _defaults(draft)
        return draft.finish()


def _training(document: Document) -> Command | None:
    """The command of a script that trains by one of kohya's scripts, or by its flags alone."""
    for command in document.commands:
        flags = {leaf.key for leaf in command.arguments}
        if command.script.endswith("train_network") or (
            flags & {"network_module"} and not command.script.startswith("train_dreambooth")
        ):
            return command
    return None


def _arguments(document: Document, command: Command | None) -> Iterator[Leaf]:
    """The arguments: of the command and of the file that it names, or of a TOML whatever its sections are called."""
    if command is None:
        for leaf in document.leaves:
            data = leaf.key.startswith(("datasets", "general."))
            yield leaf if data else replace(leaf, key=leaf.key.rpartition(".")[2])
        return
    said = list(of(command))
    yield from said
    more = _named(document, said, "config_file")
    keys = {leaf.key for leaf in said}
    for leaf in more.leaves if more else ():
        key = leaf.key.rpartition(".")[2]
        yield replace(leaf, key=key, file=more.name if more else "", shadowed=key in keys)


def _named(document: Document, arguments: Iterable[Leaf], key: str) -> Document | None:
    """The file that an argument names, where it is here: from the working folder, or from beside the document."""
    name = next((leaf.value for leaf in arguments if leaf.key == key and isinstance(leaf.value, str)), None)
    for ending in ("", ".toml"):
        for folder in (Path(), document.path.parent):
            path = folder / f"{name}{ending}"
            if name and path.suffix.lower() in TOML and is_file(path):
                return read(path)
    return None


def _told_files(draft: Draft, dataset: Document | None, named: Document | None, more: Document | None) -> None:
    if dataset is not None:
        draft.tell("dataset_config", "carried", f"{dataset.name} is read in its place")
    elif named is not None:
        draft.tell("dataset_config", "carried", "read too")
    else:
        draft.tell("dataset_config", "refused", "there is no such file here: name it with --dataset")
    here = more is not None
    draft.tell("config_file", "carried" if here else "refused", "read too" if here else "there is no such file here")


def _model(draft: Draft, families: Shelf[Family], command: Command | None, given: Meant | None) -> Meant | None:
    names = [("the script", command.script)] if command and command.script else []
    names += [(key, draft.get(key, text, "")) for key in MODELS]
    module = draft.get("network_module", text, "")
    about = given or meant([*((key, name) for key, name in names if name)], families)
    about = about or meant([("network_module", module)] if module else [], families)
    version = draft.get("model_version", text, "")
    if about and version and not (given and given.variant):
        called = (
            version if version in about.family.variants else about.family.known_as.get(f"model_version={version}", "")
        )
        about = Meant(about.family, called or about.variant, about.key)
        draft.tell("model_version", "carried" if called else "refused", "", f"variant = {called}" if called else "")
    say_family(draft, about)
    for key in MODELS:
        if about:
            source(draft, key, about)
        else:
            draft.tell(key, "refused", "no installed family is known by this name")
    plain = module.rpartition(".")[2].startswith("lora") and "_fa" not in module
    draft.tell("network_module", "carried" if plain else "refused", "" if plain else "plain LoRA is taught instead")
    return about


def _length(draft: Draft) -> None:
    epochs, updates = draft.get("max_train_epochs", number, 0.0), draft.get("max_train_steps", positive, USUAL_UPDATES)
    if epochs > 0:
        draft.put("max_train_epochs", "train.epochs", epochs)
        draft.tell("max_train_steps", "dead", "max_train_epochs counts")
    else:
        draft.settle("max_train_steps", "train.updates", updates)
    for verb, section in (("save", "save"), ("sample", "sampling")):
        by_epoch, by_step = f"{verb}_every_n_epochs", f"{verb}_every_n_steps"
        each, every = draft.get(by_epoch, positive, 0), draft.get(by_step, positive, 0)
        if each:
            why = f"every epoch; there is no every {each} epochs" if each > 1 else ""
            draft.put(by_epoch, f"{section}.every", "epoch", why)
            draft.tell(by_step, "refused", "either by epochs or by updates")
        else:
            draft.settle(by_step, f"{section}.every", every, "" if every else "only at the end")
    kept = draft.get("save_last_n_epochs", positive, 0)
    if kept:
        draft.put("save_last_n_epochs", "save.keep", kept)
    within, every = draft.get("save_last_n_steps", positive, 0), draft.setting("save.every")
    if within and isinstance(every, int) and every:
        files = max(1, within // every)
        draft.put("save_last_n_steps", "save.keep", files, f"it counts steps, of which {every} are between two files")
    elif within:
        draft.tell("save_last_n_steps", "dead", "it is read with save_every_n_steps only")
    draft.unsaid("save_last_n_epochs", "save.keep", 1000, "all are kept there")


def _optimizer(draft: Draft) -> None:
    if draft.has("unet_lr"):
        draft.put("unet_lr", "optimizer.learning_rate", draft.get("unet_lr", number, 0.0))
        draft.tell("learning_rate", "dead", "unet_lr counts")
    else:
        draft.settle("learning_rate", "optimizer.learning_rate", draft.get("learning_rate", number, 2e-6))
    optimizer(draft, "optimizer_type", "use_8bit_adam")
    extra = dict(one.partition("=")[::2] for one in draft.get("optimizer_args", texts, []))
    taken = []
    for name, setting, usual in (("weight_decay", "optimizer.weight_decay", 0.01), ("eps", "optimizer.epsilon", 1e-8)):
        if _number(extra.get(name)) is not None:
            draft.put("", setting, _number(extra[name]))
            taken.append(name)
        draft.unsaid(f"optimizer_args {name}", setting, usual, "torch's and bitsandbytes' default")
    betas = [_number(one) for one in extra.get("betas", "").strip("()[]").split(",")]
    if len(betas) == 2 and None not in betas:
        draft.put("", "optimizer.betas", betas)
        taken.append("betas")
    lost = ", ".join(name for name in extra if name not in taken)
    became = ", ".join(f"{name} = {extra[name]}" for name in taken)
    draft.tell("optimizer_args", "refused" if lost else "carried", f"no settings here: {lost}" if lost else "", became)
    updates = draft.setting("train.updates")
    schedule(draft, "lr_scheduler", "lr_warmup_steps", 0, updates)


def _number(value: str | None) -> float | None:
    try:
        return number((value or "").strip())
    except ValueError:
        return None


def _objective(draft: Draft, about: Meant | None) -> None:
    """How noise levels are drawn; outside `sigma` the weighting scheme does nothing there."""
    way = draft.get("timestep_sampling", text, "sigma").lower()
    if (about is not None and not about.flows) or way == "sigma":
        draft.tell("timestep_sampling", "carried", "evenly, or as weighting_scheme says")
        levels(draft, about, "weighting_scheme", "logit_mean", "logit_std")
        draft.tell("discrete_flow_shift", "dead", "the training schedule of timestep_sampling sigma never reads it")
        draft.tell("sigmoid_scale", "dead", "it is read with sigmoid and shift only")
        return
    scale = draft.get("sigmoid_scale", number, 1.0)
    if way == "sigmoid" and scale != 1 and scale > 0:
        draft.put(
            "timestep_sampling",
            "scheduler.timesteps",
            "logit-normal",
            "the sigmoid of a normal number times sigmoid_scale",
        )
        draft.put("sigmoid_scale", "scheduler.std", scale)
    else:
        known_ways = {"sigmoid": "sigmoid", "uniform": "uniform", "shift": "shift"}
        ours = known_ways.get(way, "shift" if way.endswith("_shift") else "")
        why = "by the formula of the family" if way.endswith("_shift") else ""
        if ours:
            draft.put("timestep_sampling", "scheduler.timesteps", ours, why)
        else:
            draft.tell("timestep_sampling", "refused", f"there is no {way} here: the family's usual way is taken")
        draft.tell("sigmoid_scale", "carried" if scale == 1 else "refused", "levels are not stretched")
    if way == "shift":
        draft.settle("discrete_flow_shift", "scheduler.shift", draft.get("discrete_flow_shift", number, 1.0))
    else:
        draft.tell("discrete_flow_shift", "dead", "it is read with timestep_sampling shift only")
    for key in ("weighting_scheme", "logit_mean", "logit_std"):
        draft.tell(key, "dead", "it is read with timestep_sampling sigma only")


def _rest(draft: Draft, about: Meant | None) -> None:
    run_name(draft, "output_name")
    launcher(draft)
    asked = draft.get("save_precision", text, "float").lower()
    draft.settle(
        "save_precision", "save.dtype", HALF.get(asked, "fp32"), "" if asked in HALF else f"there is no {asked} here"
    )
    eight = [key for key in ("fp8_base", "fp8_scaled", "fp8_base_unet") if not is_off(draft.get(key, flag, False))]
    for key in ("fp8_base", "fp8_scaled", "fp8_base_unet"):
        name = "int8" if key in eight else "none"
        draft.put(
            key,
            "quantization.name",
            "int8" if eight else "none",
            "the 8-bit format that there is" if name == "int8" else "",
        )
    draft.unsaid("fp8_base", "quantization.name", "none")
    if draft.has("network_args"):
        said = ", ".join(draft.get("network_args", texts, []))
        draft.tell(
            "network_args",
            "refused",
            f"layers are chosen by lora.targets, the ends of their names; not read: {shown(said)}",
        )


def _conditioning(draft: Draft, about: Meant | None) -> None:
    """Text encoders, which sd-scripts teaches unless it is told not to, and what else the model is told."""
    musubi = draft.has("dit")
    cached = any(draft.get(key, flag, False) for key in ("cache_text_encoder_outputs", "network_train_unet_only"))
    if not musubi:
        rate = draft.setting("optimizer.learning_rate")
        key = "network_train_unet_only"
        text_encoder(draft, about, key, trained=not cached, rate="text_encoder_lr", usual=rate)
    told(draft, about, "guidance_scale", 1.0 if musubi else 3.5)
    weighted(draft, about, ("min_snr_gamma",), "noise_offset")
    if about is not None and not about.flows and draft.get("v_parameterization", flag, False):
        draft.put("v_parameterization", "scheduler.prediction", "v_prediction")


def _defaults(draft: Draft) -> None:
    """What the trainers do where their arguments are silent, where lorakit would do something else."""
    for key, setting, value in (
        ("network_dim", "lora.rank", 4),
        ("gradient_checkpointing", "train.gradient_checkpointing", False),
        ("caption_dropout_rate", "train.caption_dropout", 0.0),
    ):
        draft.unsaid(key, setting, value)
    scale = f"the default there, so that the adapter's effect is scaled by 1 / {draft.setting('lora.rank')}"
    draft.unsaid("network_alpha", "lora.alpha", 1.0, scale)
