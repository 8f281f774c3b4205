"""From a request to a plan: rules settled, defaults filled, arithmetic done, problems found. No torch."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pluggy
from pydantic import BaseModel, ValidationError

from lorakit import __version__, checks, gpus, sharding, speed, validation
from lorakit.config import explain, leaves
from lorakit.dataset import Dataset, Sizing, index
from lorakit.errors import ConfigError, PluginError
from lorakit.family import Family, Variant
from lorakit.fields import fields, timesteps, voices
from lorakit.order import arithmetic, batches_per_epoch
from lorakit.plan import DERIVED, Plan, agree
from lorakit.planned import Planned, PlannedData, PlannedTrain
from lorakit.plugin_settings import completed
from lorakit.plugins import Plugin, call
from lorakit.problem import Problem
from lorakit.registry import Shelves
from lorakit.request import Request
from lorakit.rules import Choice, Field, Voice, settle


@dataclass
class Draft:
    """A plan in the making: nested values, and who decided each."""

    request: Request
    table: dict[str, Any]
    choices: dict[str, Choice]

    def fill(self, path: str, value: object, owner: str, because: str) -> None:
        """Set an undecided setting; one that somebody set stays as it is."""
        if self.request.value(path) is None:
            self.put(Choice(path, value, owner, because))

    def put(self, choice: Choice) -> None:
        """Set a setting to its choice."""
        *parents, leaf = choice.field.split(".")
        inner = self.table
        for parent in parents:
            inner = inner[parent]
        inner[leaf] = choice.value
        self.choices[choice.field] = choice


def decide(
    request: Request, shelves: Shelves, plugins: Sequence[Plugin], pm: pluggy.PluginManager, card: sharding.Card
) -> Plan:
    """The plan of a request; `pm` holds the plugins and the request's family, `card` tells of the GPU if asked."""
    family = shelves.families.find(request.settings.family, request.where("family"))
    request = completed(request, shelves.settings)
    draft = Draft(request, request.settings.model_dump(), {})
    variant = _variant(draft, family)
    _settle_all(draft, shelves, family, variant, pm)
    optimizer = shelves.optimizers.find(request.settings.optimizer.name, request.where("optimizer.name"))
    _fill_plain(draft, family, variant)
    quantizer = shelves.quantizers[draft.table["quantization"]["name"]]
    speed.fill(draft.fill, draft.table, request, family, variant, quantizer, optimizer)
    data = tuple(PlannedData.model_validate(one) for one in draft.table["data"])
    sizing = _sizing(draft, family)
    held_out = checks.held_out(request)
    dataset = validation.split(index(data, sizing), held_out, request.settings.seed)
    gpus.decide(request, draft.put)
    sharding.fill(draft.fill, draft.table, request, family, shelves.quantizers, card)
    _fill_length(draft, dataset)
    _fill_validation(draft, dataset, data)
    _fill_previews(draft, family, dataset, sizing)
    _note_the_rest(draft)
    checks.source(draft.table, family, variant, request)
    checks.unread(draft.table, shelves.schedulers[draft.table["scheduler"]["name"]], variant, request)
    speed.refuse(draft.table, family, variant, quantizer, optimizer, request)
    sharding.refuse(draft.table, request, quantizer)
    checks.recovery(draft.table["quantization"], request)
    settings = _planned(draft)
    plan = Plan(
        lorakit=__version__,
        settings=settings,
        choices=dict(sorted(draft.choices.items(), key=lambda item: _place(item[0]))),
        arithmetic=arithmetic(dataset, settings.train, settings.seed),
        dataset=dataset.digest(),
        held_out=tuple(str(sample.path) for sample in dataset.held_out),
        plugins={plugin.name: plugin.version for plugin in sorted(plugins, key=lambda one: one.name)},
    )
    problems = tuple(_problems(plan, family, dataset, shelves, pm, request.notes))
    return plan.model_copy(update={"problems": problems})


def _planned(draft: Draft) -> Planned:
    """The decided settings; a plugin may have wished for what no setting can be, or two settings may be at odds."""
    try:
        return Planned.model_validate(draft.table)
    except ValidationError as error:
        path = ".".join(str(part) for part in error.errors(include_url=False)[0]["loc"])
        refusal, choice = explain(error, draft.request.origins), draft.choices.get(path)
        if choice is None or path in draft.request.origins:
            raise refusal from None
        raise PluginError(refusal.what, why=f"{choice.decided_by} chose it, because {choice.because}") from None


def _variant(draft: Draft, family: Family) -> Variant:
    name = draft.request.settings.variant
    if name is None:
        name = family.default_variant
        draft.fill("variant", name, f"family {family.name}", "the family's usual variant")
    if name not in family.variants:
        raise ConfigError(
            f"{family.name} has no variant '{name}'",
            where=draft.request.where("variant"),
            fix=f"Known are {', '.join(family.variants)}.",
        )
    return family.variants[name]


# -- what rules decide -------------------------------------------------------------------------------------------


def _settle_all(draft: Draft, shelves: Shelves, family: Family, variant: Variant, pm: pluggy.PluginManager) -> None:
    said = voices(draft.request, family, shelves, pm)
    for field in fields(family, variant, shelves):
        _settle_one(draft, field, said)
    scheduler = shelves.schedulers[draft.table["scheduler"]["name"]]
    if scheduler.offers:
        _settle_one(draft, timesteps(scheduler), said)


def _settle_one(draft: Draft, field: Field, said: Sequence[Voice]) -> None:
    about = [voice for voice in said if voice.rule.field == field.name]
    draft.put(settle(field, about, draft.request.asked(field.name)))


# -- what defaults decide ----------------------------------------------------------------------------------------


def _fill_plain(draft: Draft, family: Family, variant: Variant) -> None:
    settings, owner = draft.request.settings, f"family {family.name}"
    given = settings.model.source
    if given and given != checks.TOY and Path(given).expanduser().exists():
        draft.table["model"]["source"] = _absolute(given)
        if Path(given).expanduser().is_file():
            _fill_config(draft, variant, owner)
    origin = draft.request.origins.get("preset")
    if origin and origin.by == "preset":
        draft.put(Choice("preset", settings.preset, owner, "the family's usual preset"))
    draft.fill("model.source", variant.source, owner, "the variant's published repository")
    draft.fill("lora.alpha", float(settings.lora.rank), "lorakit", "equal to the rank: scale 1")
    draft.fill("lora.targets", family.lora_targets, owner, "the family's usual targets")
    draft.fill("train.resolution", variant.resolution, owner, "the variant's native resolution")
    if variant.references:
        because = "the variant's area of reference pictures"
        draft.fill("train.reference_resolution", variant.reference_resolution, owner, because)
    if variant.text_reference_resolution:
        because = "the area at which the variant's text encoder sees them"
        draft.fill("text_encoder.reference_resolution", variant.text_reference_resolution, owner, because)
    _fill_conditioning(draft, variant, owner)
    default = settings.trigger or f"{family.name}-{draft.table['variant']}"
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", default).strip("-._") or family.name
    draft.fill("name", name[:100], "lorakit", "the trigger" if settings.trigger else "family and variant")
    recovery = draft.table["quantization"]["recovery"]
    if recovery is not None:
        draft.table["quantization"]["recovery"] = _absolute(recovery)
    draft.table["data"] = tables(draft.table["data"], settings.trigger, draft.table["train"]["resolution"])


def tables(given: Iterable[dict[str, Any]], trigger: str, resolution: int) -> tuple[dict[str, Any], ...]:
    """The [[data]] tables, decided: paths absolute, and the run's trigger and resolution where they say no other."""
    return tuple(
        {
            **one,
            **{name: one[name] and _absolute(one[name]) for name in ("folder", "list", "references")},
            "trigger": trigger if one["trigger"] is None else one["trigger"],
            "resolution": resolution if one["resolution"] is None else one["resolution"],
        }
        for one in given
    )


def _fill_config(draft: Draft, variant: Variant, owner: str) -> None:
    """Where the configuration of a model that is one file comes from."""
    config = draft.request.settings.model.config
    draft.fill("model.config", variant.source, owner, "the variant's published repository")
    if config is not None and Path(config).expanduser().exists():
        draft.table["model"]["config"] = _absolute(config)


def _fill_conditioning(draft: Draft, variant: Variant, owner: str) -> None:
    """What the model is told: guidance, and text that is encoded once or at every pass."""
    trained = draft.table["text_encoder"]["train"]
    because = "a trained encoder answers otherwise after every update" if trained else "a frozen one never changes"
    draft.fill("text_encoder.cache", not trained, "lorakit", because)
    if trained:
        half = draft.request.settings.optimizer.learning_rate / 2
        draft.fill("text_encoder.learning_rate", half, "lorakit", "half of optimizer.learning_rate")
    if variant.guidance == "embedded":
        draft.fill("train.guidance", 1.0, owner, "what the model is told of guidance in training")


def _sizing(draft: Draft, family: Family) -> Sizing:
    table = draft.table
    text = table["text_encoder"]["reference_resolution"]
    return family.sizing(table["variant"], table["train"]["reference_resolution"], text)


def _absolute(folder: str) -> str:
    """The folder as it is called from anywhere, so that a run can be resumed from anywhere."""
    return str(Path(folder).expanduser().absolute())


def _fill_length(draft: Draft, dataset: Dataset) -> None:
    """Updates and epochs that agree."""
    request, train = draft.request, draft.request.settings.train
    updates, epochs = train.updates, train.epochs
    origins = {name: request.origins.get(f"train.{name}") for name in ("updates", "epochs")}
    why = DERIVED
    if updates is None and epochs is None:
        epochs, why = 10.0, "neither updates nor epochs are set"
    batches = batches_per_epoch(dataset, draft.table["train"]["gpus"] * train.batch_size)
    agreed, meant = agree(updates, epochs, batches, train.accumulation)
    for name, given, value in (("updates", updates, agreed), ("epochs", epochs, meant)):
        origin = origins[name] if given is not None else None
        if origin:
            draft.put(Choice(f"train.{name}", value, origin.where, f"asked for by the {origin.by}"))
        else:
            draft.put(Choice(f"train.{name}", value, "lorakit", why))


def _fill_validation(draft: Draft, dataset: Dataset, data: Sequence[PlannedData]) -> None:
    """How often to validate, where nobody says."""
    if draft.request.settings.validation.every is not None:
        return
    table, train = draft.table, PlannedTrain.model_validate(draft.table["train"])
    looked = validation.looked_at(
        dataset, table["validation"]["prompts"], [table["trigger"], *(one.trigger for one in data)], table["seed"]
    )
    sums = arithmetic(dataset, train, table["seed"])
    every, because = validation.cadence(looked, train, sums.passes, table["save"]["every"])
    draft.fill("validation.every", every, "lorakit", because)


def _fill_previews(draft: Draft, family: Family, dataset: Dataset, sizing: Sizing) -> None:
    request, first = draft.request, dict[str, tuple[str, ...]]()
    for sample in dataset.samples:
        if sample.caption:
            first.setdefault(sample.caption, tuple(str(reference.path) for reference in sample.references))
    shown = dict(list(first.items())[:2]) or ({request.settings.trigger: ()} if request.settings.trigger else {})
    asked = request.settings.sampling.prompts
    draft.fill("sampling.prompts", tuple(shown), "lorakit", "the first captions")
    because = "those of the first captions" if asked is None else "none are named"
    seen = tuple(shown.values()) if asked is None else ((),) * len(asked)
    draft.fill("sampling.references", seen, "lorakit", because)
    given = request.settings.sampling.references
    if given is not None:
        absolute = tuple(tuple(map(_absolute, some)) for some in given)
        checks.previews(len(draft.table["sampling"]["prompts"]), absolute, sizing, request)
        draft.table["sampling"]["references"] = absolute
    side = draft.table["train"]["resolution"] // family.side_multiple * family.side_multiple
    for name in ("width", "height"):
        draft.fill(f"sampling.{name}", max(side, family.side_multiple), "lorakit", "the training resolution")


def _note_the_rest(draft: Draft) -> None:
    """A choice for every setting that nobody had to decide: asked for, or the default of its field."""
    for path, value in leaves(draft.table):
        if path not in draft.choices:
            origin = draft.request.origins.get(path)
            where, why = (origin.where, f"asked for by the {origin.by}") if origin else ("lorakit", "default")
            draft.choices[path] = Choice(path, _plain(value), where, why)


def _plain(value: Any) -> Any:
    if isinstance(value, list):  # of a plugin's settings, which are as JSON has them
        return tuple(map(_plain, value))
    return value.model_dump() if isinstance(value, BaseModel) else value


def _place(path: str) -> tuple[int, int, str]:
    """Where a setting stands in the plan: top settings first, then sections in their written order."""
    names = list(Planned.model_fields)
    section, _, leaf = path.partition(".")
    inner = Planned.model_fields[section].annotation
    fields = list(inner.model_fields) if leaf and isinstance(inner, type) and issubclass(inner, BaseModel) else []
    return names.index(section), fields.index(leaf) if leaf in fields else 0, path


# -- what can be wrong -------------------------------------------------------------------------------------------


def _problems(
    plan: Plan,
    family: Family,
    dataset: Dataset,
    shelves: Shelves,
    pm: pluggy.PluginManager,
    notes: Sequence[str],
) -> Iterable[Problem]:
    yield from (Problem(note) for note in (*notes, *dataset.notes))
    yield from checks.core(plan, family, dataset)
    settings = plan.settings
    parts = (
        shelves.schedulers[settings.scheduler.name],
        shelves.quantizers[settings.quantization.name],
        shelves.optimizers[settings.optimizer.name],
    )
    for part in parts:
        absent = [name for name in part.requires if _absent(name)]
        if absent:
            yield Problem(f"{part.name} needs {', '.join(absent)}: {part.remedy}", "error")
    for answer in call(pm, "check_plan", plan=plan):
        for problem in answer.value or ():
            if not isinstance(problem, Problem):
                raise PluginError(f"{answer.owner} answers check_plan with {problem!r}, which is not a Problem")
            yield Problem(problem.message, problem.severity, answer.owner)


def _absent(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is None
    except ModuleNotFoundError:  # the package that it would be in
        return True
