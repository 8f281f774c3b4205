"""Making an accuracy recovery adapter: block by block, so that there is never more than one block of the full model.

Three passes of every input go through the model side by side: the teacher's in full precision, the corrected
student's, and an uncorrected student's for comparison. The corrected student's own outputs go on to the next block, so
that each block is fitted on what it will really be given and corrects what is left of the errors before it. Measured
against feeding the teacher's outputs on the toy, that is a little better (docs/quantization.md).
"""

from __future__ import annotations

import copy
import json
import shutil
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from lorakit.control import Control
from lorakit.engine import calibration, memory
from lorakit.engine.cache import Cache, write_atomically
from lorakit.engine.correction import BASE, QUANTIZATION, RANK, Corrected, Halves, correct
from lorakit.engine.fitting import BlockFit, Recipe, answer, watched
from lorakit.engine.loading import Loader
from lorakit.engine.objective import make_scheduler
from lorakit.engine.parts import Denoiser
from lorakit.engine.phases import Context, StopAsked
from lorakit.engine.quantizers import linears, quantize
from lorakit.engine.source import cache_folder, locate
from lorakit.engine.walk import Halt, Walk, Walks
from lorakit.errors import ModelError
from lorakit.events import (
    Event,
    LayerRecovered,
    PhaseFinished,
    PhaseProgress,
    PhaseStarted,
    RecoveryFinished,
    RecoveryStopped,
)
from lorakit.plan import Plan
from lorakit.registry import Shelves

STREAMS = 3  # the teacher's passes, the corrected student's, the uncorrected one's


def recover(
    plan: Plan, shelves: Shelves, control: Control, file: Path, recipe: Recipe | None = None
) -> Generator[Event, None, None]:
    """Make the adapter for the plan's model and quantization in `file`, and a report beside it; `recipe` says how."""
    return Making(plan, shelves, control, file, recipe or Recipe()).events()


class Making:
    """One adapter in the making; what is finished of it lies in a folder beside the file, to go on from."""

    def __init__(self, plan: Plan, shelves: Shelves, control: Control, file: Path, recipe: Recipe) -> None:
        family = shelves.families.find(plan.settings.family)
        device = memory.device_for(plan.settings.model.device)
        cache = Cache(cache_folder(plan))
        self.context = Context(plan, family, shelves, locate(plan, family), cache, device, control)
        self.file, self.recipe = file, recipe
        self.partial = file.with_name(f"{file.name}.partial")
        self.layers: dict[str, tuple[float, float]] = {}
        self.blocks = 0
        self.walks: Walks | None = None

    def events(self) -> Generator[Event, None, None]:
        """Everything that happens; after a stop, the same call goes on after the last finished block."""
        try:
            yield from self._work()
        except StopAsked:
            reason = self.context.control.reason
            yield RecoveryStopped(blocks=self.blocks, reason=reason, folder=str(self.partial))
        finally:
            if self.walks:
                self.walks.close()

    def _work(self) -> Iterator[Event]:
        began = time.perf_counter()
        scheduler = make_scheduler(self.context)
        shown = yield from calibration.inputs(self.context, scheduler, self.recipe.samples)
        denoiser = self.context.family.denoiser(self.context.plan, self.context.source.hollow())
        loader = Loader(self.context, denoiser)
        facts = self._facts(loader)
        done = self._begin(facts)
        loader.outer()
        templates = list(denoiser.blocks)
        self.walks = Walks(denoiser.module, loader.names)
        denoiser.module.to(self.context.device)
        passes = [[self.walks.start(self._pass(denoiser, one)) for one in shown] for _ in range(STREAMS)]
        yield PhaseStarted(phase="recover", total=len(templates))
        for name, template in zip(loader.names, templates, strict=True):
            self.context.check()
            yield from self._block(loader, name, template, passes, done.get(name))
            self.blocks += 1
            yield PhaseProgress(phase="recover", done=self.blocks, note=name)
        before, after = _overall(passes)
        self._finish(facts, before, after)
        note = f"{len(self.layers)} layers, output error {before:.2%} to {after:.2%}"
        yield PhaseFinished(phase="recover", seconds=time.perf_counter() - began, note=note)
        yield RecoveryFinished(
            path=str(self.file),
            report=str(self.report),
            before=before,
            after=after,
            seconds=time.perf_counter() - began,
        )

    def _pass(self, denoiser: Denoiser, shown: calibration.Shown) -> partial[Tensor]:
        device = self.context.device
        about = shown.about.to(device, self.context.source.dtype)
        return partial(denoiser.predict, shown.noisy.to(device), shown.t.to(device), about)

    # -- one block -----------------------------------------------------------------------------------------------

    def _block(
        self, loader: Loader, name: str, teacher: nn.Module, passes: Sequence[Sequence[Walk]], known: Path | None
    ) -> Iterator[Event]:
        """Correct one block, or take its correction from the file `known`; then let every pass go through it."""
        device, rank = self.context.device, self.recipe.rank
        loader.block(name, teacher)
        teacher.to(device)
        student = copy.deepcopy(teacher)
        quantize(student, loader.quantizer, device, loader.spared)
        correct(student, {path: _nothing(layer, rank) for path, layer in linears(teacher)})
        ahead, behind, plain = ([_halt(walk) for walk in walks] for walks in passes)
        before, answers = _compare(teacher, student, ahead, plain)
        _go_on(passes[2], answers[1])
        if known:
            _set(student, safetensors.torch.load_file(known))
        else:
            yield from self._fit(teacher, student, ahead, behind)
            write_atomically(self._place(name), safetensors.torch.save(_halves(student)))
        after, answers = _compare(teacher, student, ahead, behind)
        _go_on(passes[0], answers[0])
        _go_on(passes[1], answers[1])
        for path in before:
            self.layers[f"{name}.{path}"] = (before[path], after[path])
            yield LayerRecovered(name=f"{name}.{path}", before=before[path], after=after[path])
        teacher.to("meta")
        memory.release()

    def _fit(
        self, teacher: nn.Module, student: nn.Module, ahead: Sequence[Halt], behind: Sequence[Halt]
    ) -> Iterator[Event]:
        fit = BlockFit(teacher, student, list(zip(ahead, behind, strict=True)))
        for _ in range(self.recipe.sweeps):
            fit.solve(self.recipe)
            self.context.check()
        fit.step(self.recipe, self.context.check)
        fit.round()
        yield from ()

    # -- files ---------------------------------------------------------------------------------------------------

    @property
    def report(self) -> Path:
        """The table of errors, as JSON."""
        return self.file.with_suffix(".json")

    def _facts(self, loader: Loader) -> dict[str, str]:
        """What the adapter is for, as its file says it."""
        return {
            "format": "pt",
            BASE: loader.weights.fingerprint(),
            QUANTIZATION: loader.form,
            RANK: str(self.recipe.rank),
            "lorakit.version": self.context.plan.lorakit,
        }

    def _begin(self, facts: Mapping[str, str]) -> dict[str, Path]:
        """The blocks that an earlier, stopped making of the same adapter finished, and their files."""
        settings = self.context.plan.settings
        sizes: Any = {"train": {"precision", "resolution"}, "sampling": {"width", "height"}}
        included = {"data": True, "seed": True, **sizes}
        shown = settings.model_dump(mode="json", include=included)
        told = json.dumps({**facts, "recipe": repr(self.recipe), "shown": shown}, sort_keys=True)
        about = self.partial / "about.json"
        if not about.is_file() or about.read_text(encoding="utf-8") != told:
            shutil.rmtree(self.partial, ignore_errors=True)
            write_atomically(about, told.encode())
        return {path.stem: path for path in self.partial.glob("*.safetensors") if _whole(path)}

    def _place(self, block: str) -> Path:
        return self.partial / f"{block}.safetensors"

    def _finish(self, facts: Mapping[str, str], before: float, after: float) -> None:
        held: dict[str, Tensor] = {}
        for path in sorted(self.partial.glob("*.safetensors")):
            for key, tensor in safetensors.torch.load_file(path).items():
                held[f"transformer.{path.stem}.{key}"] = tensor
        write_atomically(self.file, safetensors.torch.save(held, dict(facts)))
        layers = {name: {"before": one, "after": other} for name, (one, other) in self.layers.items()}
        table = {**facts, "before": before, "after": after, "layers": layers}
        write_atomically(self.report, (json.dumps(table, indent=1) + "\n").encode())
        shutil.rmtree(self.partial, ignore_errors=True)


def _nothing(layer: nn.Linear, rank: int) -> Halves:
    kind = torch.bfloat16
    return torch.zeros(rank, layer.in_features, dtype=kind), torch.zeros(layer.out_features, rank, dtype=kind)


def _halves(student: nn.Module) -> dict[str, Tensor]:
    """The corrections of a block as the file names them."""
    found: dict[str, Tensor] = {}
    for name, layer in student.named_modules():
        if isinstance(layer, Corrected):
            found[f"{name}.lora_A.weight"] = layer.lora_a.cpu().contiguous()
            found[f"{name}.lora_B.weight"] = layer.lora_b.cpu().contiguous()
    return found


def _set(student: nn.Module, held: Mapping[str, Tensor]) -> None:
    for name, layer in student.named_modules():
        if isinstance(layer, Corrected):
            layer.lora_a = held[f"{name}.lora_A.weight"].to(layer.lora_a.device, copy=True)
            layer.lora_b = held[f"{name}.lora_B.weight"].to(layer.lora_b.device, copy=True)


def _whole(path: Path) -> bool:
    try:
        return bool(safetensors.torch.load_file(path))
    except (OSError, SafetensorError):
        return False


def _halt(walk: Walk) -> Halt:
    if walk.halt is None:
        raise ModelError("the model does not pass through all of its blocks", fix="This is a bug of the family.")
    return walk.halt


def _go_on(walks: Sequence[Walk], answers: Sequence[object]) -> None:
    for walk, output in zip(walks, answers, strict=True):
        walk.go_on(output)


def _compare(
    teacher: nn.Module, student: nn.Module, ahead: Sequence[Halt], behind: Sequence[Halt]
) -> tuple[dict[str, float], tuple[list[object], list[object]]]:
    """Relative errors of the student's layers by name, and what both blocks answer to each of their passes."""
    names = [name for name, _ in linears(teacher)]
    sums = {name: torch.zeros(2, dtype=torch.float64) for name in names}
    answers: tuple[list[object], list[object]] = ([], [])
    with watched(teacher, names) as full, watched(student, names) as own:
        for first, second in zip(ahead, behind, strict=True):
            answers[0].append(answer(teacher, first))
            answers[1].append(answer(student, second))
            for name in names:
                wanted, found = full[name][1].float(), own[name][1].float()
                sums[name] += torch.stack([(found - wanted).square().sum(), wanted.square().sum()]).double().cpu()
    return {name: float((off / size.clamp_min(1e-20)).sqrt()) for name, (off, size) in sums.items()}, answers


def _overall(passes: Sequence[Sequence[Walk]]) -> tuple[float, float]:
    """Relative errors of the denoiser's answers, uncorrected and corrected."""
    wanted, corrected, plain = (
        torch.cat([walk.answer.float().flatten() for walk in walks if walk.answer is not None]) for walks in passes
    )
    return float((plain - wanted).norm() / wanted.norm()), float((corrected - wanted).norm() / wanted.norm())
