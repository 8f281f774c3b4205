"""Promises about training: what is taught, what stays, how the base is held, going on, and the file."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from functools import partial

import safetensors.torch
import torch
from torch import Tensor

from lorakit import Plan
from lorakit.control import Control
from lorakit.engine.draws import draw
from lorakit.engine.loading import Model, load_model
from lorakit.engine.loop import Trainer
from lorakit.engine.lora_linear import LoraLinear
from lorakit.engine.material import Material, gather
from lorakit.engine.objective import make_scheduler
from lorakit.engine.preparing import Item
from lorakit.engine.quantizers import Calibrated
from lorakit.errors import RuleError
from lorakit.events import Event, RunFinished, RunStopped, UpdateFinished
from lorakit.order import turns
from lorakit.registry import Part
from lorakit.testing.bench import LONG, SHORT, Bench, drained
from lorakit.testing.promise import PromiseError, require

UPDATES = 24
"""Updates after which a toy must have learned something."""
FALL = 0.01
"""The least share by which the loss must fall, at noise and levels that stay the same."""
PROOF = re.compile(r"diffusers (\d+)/(\d+) modules, scale ([\d.]+) \| ComfyUI keys (\d+)/")


class Lesson:
    """A plan's model with its adapter, and a trainer over the plan's pictures; nothing is saved."""

    def __init__(self, bench: Bench, plan: Plan) -> None:
        context = bench.context(plan)
        self.plan = plan
        self.material: Material = drained(gather(context))
        self.model: Model = drained(load_model(context, self.material.encoder))
        optimizer = bench.kit.shelves.optimizers[plan.settings.optimizer.name].resolve()
        self.trainer = Trainer(
            plan,
            self.model.denoiser,
            self.model.adapter,
            make_scheduler(context),
            optimizer([part.group for part in self.model.adapter.parts], plan.settings.optimizer),
            bench.family.patch,
            context.source.dtype,
            self.material.conditions,
            self.model.table,
        )

    def teach(self) -> None:
        """Every update of the plan."""
        for batches in turns(self.material.dataset, self.plan.settings.train, self.plan.settings.seed):
            self.trainer.update(batches, self.material.item)

    @torch.no_grad()
    def loss(self) -> float:
        """The mean loss of every picture at three noise levels, at draws that are always the same."""
        found = []
        for number in range(len(self.material.dataset.samples)):
            item: Item = self.material.item(number)
            for place, u in enumerate((0.2, 0.5, 0.8)):
                chance = draw(99, 3 * number + place, tuple(item.latents.shape))
                noise, offset = chance.noise[None], chance.offset[None]
                shown = self.trainer.batches.at([item], [item.text], noise, offset, torch.tensor([u]))
                found.append(float(self.trainer.score(shown)))
        return sum(found) / len(found)

    def base(self) -> Iterator[tuple[str, Tensor]]:
        """Everything of the denoiser that is not the adapter's, by name."""
        for name, one in self.model.denoiser.module.state_dict().items():
            if ".lora_" not in name:
                yield name, one


def only_the_adapter(bench: Bench) -> str:
    """The adapter's parameters are trained, in every block, and no bit of the base changes."""
    lesson = Lesson(bench, bench.plan(train={"updates": 2}))
    before = {name: one.clone() for name, one in lesson.base()}
    adapter, module = lesson.model.adapter, lesson.model.denoiser.module
    own = {id(half) for layer in adapter.layers.values() for half in (layer.lora_A, layer.lora_B)}
    strays = [name for name, one in module.named_parameters() if one.requires_grad and id(one) not in own]
    require(not strays, f"{strays[:1]} of the base is trained too.")
    lesson.teach()
    changed = [name for name, one in lesson.base() if not torch.equal(one, before[name])]
    require(not changed, f"{len(changed)} tensors of the base changed, as {changed[:1]}.")
    for number, block in enumerate(lesson.model.denoiser.blocks):
        inside = [one for one in block.modules() if isinstance(one, LoraLinear)]
        require(inside, f"no layer of block {number} has an adapter: lora_targets name none of its layers.")
        require(any(one.lora_B.any() for one in inside), f"no layer of block {number} learned anything.")
    return f"{adapter.flat.numel()} parameters in {len(adapter.layers)} layers, {len(before)} tensors unchanged"


def trained_text(bench: Bench) -> str:
    """Text encoders that may be trained learn by their adapters alone, and the file brings them back."""
    names = bench.family.trainable_text
    if not names:
        return "none may be trained"
    plan = bench.plan(name="text", train={"updates": 2, "caption_dropout": 0}, text_encoder={"train": True})
    lesson = Lesson(bench, plan)
    assert lesson.material.encoder is not None, "the plan trains it"
    module = lesson.material.encoder.module
    before = {name: one.clone() for name, one in module.state_dict().items() if ".lora_" not in name}
    lesson.teach()
    changed = [name for name, one in module.state_dict().items() if not torch.equal(one, before.get(name, one))]
    require(not changed, f"{len(changed)} tensors of the text encoder's base changed, as {changed[:1]}.")
    for name in names:
        inside = [one for one in module.get_submodule(name).modules() if isinstance(one, LoraLinear)]
        require(inside, f"no layer of {name} has an adapter: text_targets name none of its layers.")
        require(any(one.lora_B.any() for one in inside), f"nothing of {name} learns: encode lets no gradient through.")
    last = list(bench.kit.train(plan))[-1]
    assert isinstance(last, RunFinished)
    taught, layers = _proven(last.proof)[0], len(lesson.model.adapter.layers)
    require(taught == layers, f"{layers} layers were taught, and the proof reads '{last.proof}'.")
    return f"{', '.join(names)}; {last.proof}"


def loss(bench: Bench) -> str:
    """Training brings the loss down."""
    lesson = Lesson(bench, bench.plan(train={"updates": UPDATES, "caption_dropout": 0}, lora={"rank": 8}))
    before = lesson.loss()
    lesson.teach()
    after = lesson.loss()
    require(after < (1 - FALL) * before, f"the loss was {before:.4f}, and after {UPDATES} updates {after:.4f}.")
    return f"{before:.3f}, and {after:.3f} after {UPDATES} updates"


# -- the base in fewer bits --------------------------------------------------------------------------------------


def quantizers(bench: Bench) -> str:
    """Every quantizer that the rules allow holds the base, answers nearly as it does, and can be trained on."""
    seen = []
    with torch.no_grad():
        plain = _answer(bench, bench.denoiser)
    for name, part in bench.kit.shelves.quantizers.items():
        if name == "none" or not _present(part):
            continue
        held = {"name": name, "uncorrected": name in bench.family.needs_recovery, "cache": False}
        try:
            plan = bench.plan(quantization=held, train={"updates": 1})
        except RuleError:
            continue  # the family refuses it, and says why
        lesson = Lesson(bench, plan)
        _calibrate(lesson, part)
        with torch.no_grad():
            answer = _answer(bench, lesson.model.denoiser)
        error = float((answer - plain).norm() / plain.norm())
        require(0 < error < 1, f"in {name}, predictions differ by {error:.0%} of their size.")
        lesson.teach()
        require(any(one.lora_B.any() for one in lesson.model.adapter.layers.values()), f"in {name}, nothing learns.")
        seen.append(f"{name} {error:.1%}")
    return ", ".join(seen) or "none is admitted"


def _present(part: Part) -> bool:
    try:
        return all(importlib.util.find_spec(name) for name in part.requires)
    except ModuleNotFoundError:
        return False


def _answer(bench: Bench, denoiser: object) -> Tensor:
    noisy, t, about = bench.noisy(2), bench.levels(0.3, 0.8), bench.batch(bench.texts(SHORT, LONG))
    found: Tensor = denoiser.predict(noisy, t, about)  # type: ignore[attr-defined]
    return found


def _calibrate(lesson: Lesson, part: Part) -> None:
    """As a run begins: some quantizers want to see a batch."""
    quantizer = part.resolve()()
    if isinstance(quantizer, Calibrated):
        first = next(turns(lesson.material.dataset, lesson.plan.settings.train, lesson.plan.settings.seed))[0]
        batch = partial(lesson.trainer.loss, first, lesson.material.item)
        quantizer.calibrate(lesson.model.denoiser.blocks, lambda: batch().sum())
        lesson.model.adapter.grad.zero_()


# -- runs and files ----------------------------------------------------------------------------------------------


def resume(bench: Bench) -> str:
    """A run that was stopped goes on to the file of one that was not."""
    straight, stopped = bench.plan(name="straight"), bench.plan(name="stopped")
    list(bench.kit.train(straight))
    control, events = Control(), list[Event]()
    for event in bench.kit.train(stopped, control):
        events.append(event)
        if isinstance(event, UpdateFinished) and event.update == 2:
            control.stop("to go on")
    require(isinstance(events[-1], RunStopped), "the run did not stop when it was asked to.")
    last = list(bench.kit.resume(stopped.folder))[-1]
    require(isinstance(last, RunFinished), "the run did not finish when it went on.")
    expected, found = (_tensors(plan) for plan in (straight, stopped))
    require(expected.keys() == found.keys(), "the two files hold other layers.")
    unlike = [name for name, one in expected.items() if not torch.equal(one, found[name])]
    require(not unlike, f"{len(unlike)} of {len(found)} tensors differ, as {unlike[:1]}.")
    return f"{len(found)} tensors equal, bit for bit"


def _tensors(plan: Plan) -> dict[str, Tensor]:
    return safetensors.torch.load_file(plan.folder / f"{plan.settings.name}.safetensors")


def _proven(text: str) -> tuple[int, int]:
    """The layers that were taught and those that ComfyUI knows; all of the first were read back at their strength."""
    proof = PROOF.search(text)
    if proof is None:
        raise PromiseError(f"the proof reads '{text}'.")
    loaded, taught, scale, known = proof.groups()
    require(loaded == taught and abs(float(scale) - 1) < 5e-3, f"the proof reads '{text}'.")
    return int(taught), int(known)


def export(bench: Bench) -> str:
    """The file is read back by the reference pipeline: every layer, at its trained strength."""
    plan = bench.plan(name="exported", train={"updates": 2})
    last = list(bench.kit.train(plan))[-1]
    assert isinstance(last, RunFinished)
    taught, known = _proven(last.proof)
    whole = not bench.family.workflows or known == taught
    require(whole, f"it has ComfyUI workflows, and the proof reads '{last.proof}'.")
    require(any(one.any() for one in _tensors(plan).values()), "the file holds nothing but zeros.")
    return last.proof
