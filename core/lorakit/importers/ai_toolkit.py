"""ai-toolkit's YAML, as its own code reads it, and as people mean it where that differs."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import replace

from lorakit.errors import ConfigError
from lorakit.family import Family
from lorakit.importers import ai_toolkit_keys as known
from lorakit.importers.ai_toolkit_data import datasets, samples
from lorakit.importers.ai_toolkit_train import training
from lorakit.importers.document import YAML, Document
from lorakit.importers.draft import Draft, flag, is_off, number, positive, text
from lorakit.importers.keys import tell_all
from lorakit.importers.leaf import Leaf
from lorakit.importers.names import Meant, meant
from lorakit.importers.report import Imported, shown
from lorakit.importers.shared import HALF, run_name, say_family, source
from lorakit.registry import Shelf

PROCESS = re.compile(r"(?:config\.)?process\[0\]\.")
SECTIONS = ("network.", "train.", "model.", r"datasets\[", "save.", "sample.")
BITS = {"8": "int8", "4": "int4", "3": "int4", "2": "int2"}
OTHER_JOBS = ("extract", "mod", "generate")
KINDS = ("lora", "locon", "lierla")  # network types that are plain LoRA on linear layers
REAL_FLAGS = ("is_v2", "is_v3", "is_xl", "is_pixart", "is_pixart_sigma", "is_auraflow", "is_flux", "is_lumina2",
              "is_ssd", "is_vega")  # fmt: skip
"""The flags that ai-toolkit reads beside `arch`."""


class AiToolkit:
    """The importer `ai-toolkit`."""

    def recognizes(self, document: Document) -> bool:
        """A YAML or JSON file with a process, or with two of its sections."""
        if document.path.suffix.lower() not in YAML:
            return False
        return document.has(PROCESS.pattern) or sum(document.has(section) for section in SECTIONS) >= 2

    def read(
        self,
        document: Document,
        families: Shelf[Family],
        *,
        dataset: Document | None = None,
        given: Meant | None = None,
    ) -> Imported:
        """The first process of the file."""
        if dataset is not None:
            raise ConfigError("an ai-toolkit file names its pictures itself", where="--dataset", fix="Leave it out.")
        draft = Draft("ai-toolkit", document.name, _of_the_process(document.leaves))
        if draft.get("job", text, "train") in OTHER_JOBS:
            job = draft.get("job", text, "")
            raise ConfigError(f"{document.name} is no training: its job is {job}", fix="Name a file that trains.")
        about = _model(draft, families, given)
        _name(draft)
        _quantization(draft)
        _network(draft, about)
        training(draft, about, document)
        datasets(draft, about)
        samples(draft, about)
        _save(draft)
        for table in (known.PROCESS, known.TRAIN, known.MODEL, known.SAMPLE):
            tell_all(draft, table)
        _defaults(draft)
        for leaf in list(draft.below("config.process[")):
            draft.tell(leaf.key, "refused", "only the first process is read")
        return draft.finish()


def _of_the_process(leaves: Iterable[Leaf]) -> Iterator[Leaf]:
    """The leaves, those of the first process by their names inside it."""
    for leaf in leaves:
        yield replace(leaf, key=PROCESS.sub("", leaf.key, count=1) if PROCESS.match(leaf.key) else leaf.key)


def _model(draft: Draft, families: Shelf[Family], given: Meant | None) -> Meant | None:
    flags = [leaf.key for leaf in draft.below("model.is_") if not is_off(leaf.value)]
    names = [(key, draft.get(key, text, "")) for key in ("model.name_or_path", "model.arch")]
    names += [(key, key.removeprefix("model.")) for key in flags]
    about = given or meant([(key, name) for key, name in names if name], families)
    say_family(draft, about)
    if about is None:
        for key, _ in names:
            draft.tell(key, "refused", "no installed family is known by this name")
        return None
    family = about.family
    source(draft, "model.name_or_path", about)
    if draft.has("model.arch"):
        alone = meant([("", draft.get("model.arch", text, ""))], families)
        if alone and alone.family is family:
            draft.tell("model.arch", "carried", "", f"family = {family.name}")
        else:
            why = f"{about.key} says {family.title}, and counts"
            draft.tell("model.arch", "changed", why, f"family = {family.name}")
    for leaf in list(draft.below("model.is_")):
        if leaf.key not in flags:
            draft.tell(leaf.key, "carried", "off")
        elif leaf.key.removeprefix("model.") in REAL_FLAGS:
            draft.tell(leaf.key, "carried", "", f"family = {family.name}")
        else:
            why = (
                "ai-toolkit never reads it: its key is arch, without which it takes any model for SD 1.5; read as meant"
            )
            draft.tell(leaf.key, "dead", why, f"family = {family.name}")
    return about


def _name(draft: Draft) -> None:
    for key in ("config.name", "name"):
        run_name(draft, key)
    draft.same("training_folder", "output", text)


def _quantization(draft: Draft) -> None:
    """How the base is held: the nearest that lorakit has to ai-toolkit's many formats."""
    if not draft.get("model.quantize", flag, False):
        for key in ("model.qtype", "model.quantize_dtype", "model.accuracy_recovery_adapter"):
            draft.tell(key, "dead", "it is read with quantize: true only")
        draft.settle("model.quantize", "quantization.name", "none")
        return
    asked = draft.get("model.qtype", text, "")
    meant_by = draft.get("model.quantize_dtype", text, "")
    kind, _, corrected = (asked or meant_by or "qfloat8").partition("|")
    name = BITS.get(re.sub(r"\D*(\d).*", r"\1", kind), "int8")
    said = "model.qtype" if asked else "model.quantize_dtype" if meant_by else "model.quantize"
    draft.put("model.quantize", "quantization.name", name, "" if said != "model.quantize" else "ai-toolkit's qfloat8")
    why = "" if kind in ("int8", "qint8") else f"the nearest that there is to {kind}"
    draft.put("model.qtype", "quantization.name", name, why)
    if meant_by and asked:
        draft.tell("model.quantize_dtype", "dead", "ai-toolkit never reads it, and model.qtype counts")
    elif meant_by:
        why = f"ai-toolkit never reads it: its key is qtype, for which it would take qfloat8; read as meant, {kind}"
        draft.put("model.quantize_dtype", "quantization.name", name, why, "dead")
    adapter = corrected or draft.get("model.accuracy_recovery_adapter", text, "")
    fix = "make one with `lorakit recover`, and name it in quantization.recovery"
    if draft.has("model.accuracy_recovery_adapter"):
        draft.tell("model.accuracy_recovery_adapter", "refused", f"it belongs to ai-toolkit's own quantizer; {fix}")
    if name != "int8":
        draft.put("", "quantization.uncorrected", True)
        lost = f"the recovery adapter {shown(adapter)} belongs to ai-toolkit's own quantizer; " if adapter else ""
        draft.findings.append(f"{name} without a recovery adapter loses much of the base: {lost}{fix}")


def _network(draft: Draft, about: Meant | None) -> None:
    kind = draft.get("network.type", text, "lora").lower()
    if kind in KINDS:
        draft.tell("network.type", "carried")
    else:
        draft.tell("network.type", "refused", "plain LoRA is taught instead")
    rank = draft.get("network.linear", positive, None) or draft.get("network.rank", positive, 4)
    said = "network.linear" if draft.has("network.linear") else "network.rank"
    draft.settle(said, "lora.rank", rank)
    if said == "network.linear":
        draft.tell("network.rank", "dead", "network.linear counts")
    alpha = draft.get("network.linear_alpha", number, None) or draft.get("network.alpha", number, None)
    said = "network.linear_alpha" if draft.has("network.linear_alpha") else "network.alpha"
    if said == "network.linear_alpha":
        draft.tell("network.alpha", "dead", "network.linear_alpha counts")
    if about is not None and "transformer" in about.family.components and alpha != rank:
        if alpha is not None:
            why = f"ai-toolkit sets alpha to the rank for transformer models; {alpha:g} would be another run"
            draft.put(said, "lora.alpha", float(rank), why, "dead")
        draft.unsaid("network.linear_alpha", "lora.alpha", float(rank), "ai-toolkit sets alpha to the rank")
    elif alpha is not None:
        draft.put(said, "lora.alpha", alpha)
    draft.unsaid("network.linear_alpha", "lora.alpha", 1.0)
    draft.remark(
        "network", "ai-toolkit adapts every linear layer inside the blocks; here the family's usual, or lora.targets"
    )


def _save(draft: Draft) -> None:
    asked = draft.get("save.dtype", text, "float16").lower()
    draft.settle(
        "save.dtype", "save.dtype", HALF.get(asked, "bf16"), "" if asked in HALF else f"there is no {asked} here"
    )


def _defaults(draft: Draft) -> None:
    """What ai-toolkit does where a file is silent, where lorakit would do something else."""
    for key, setting, value in (
        ("save.max_step_saves_to_keep", "save.keep", 5),
        ("datasets[0].caption_dropout_rate", "train.caption_dropout", 0.0),
        ("sample.sample_steps", "sampling.steps", 20),
        ("sample.seed", "sampling.seed", 0),
        ("train.dtype", "train.precision", "fp32"),
    ):
        draft.unsaid(key, setting, value)
