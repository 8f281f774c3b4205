"""Making an accuracy recovery adapter: block by block, so that there is never more than one block of the full model.

Each block is corrected on what the corrected blocks before it give, its layers solved for and then fitted together to
the block's own output. When the last is done, all corrections are fitted together once more, to the answers that the
full model gave on its way. What each stage takes back on the toy is told in docs/quantization.md.
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
from lorakit.engine.attended import Attended
from lorakit.engine.cache import Cache, write_atomically
from lorakit.engine.correction import BASE, QUANTIZATION, RANK, Corrected, Halves, correct
from lorakit.engine.fitting import BlockFit, Recipe
from lorakit.engine.loading import Loader
from lorakit.engine.objective import make_scheduler
from lorakit.engine.parts import Denoiser
from lorakit.engine.phases import Context, StopAsked
from lorakit.engine.quantizers import linears, quantize
from lorakit.engine.recomputing import Recomputing
from lorakit.engine.source import cache_folder, locate
from lorakit.engine.streams import Shares, Streams
from lorakit.engine.together import Together, take_in
from lorakit.engine.walk import Walk, Walks
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

KEEP = 50  # updates of the last stage between two savings of where it stands


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
        self.blocks = self.updates = 0
        self.walks: Walks | None = None

    def events(self) -> Generator[Event, None, None]:
        """Everything that happens; after a stop, the same call goes on after the last finished block."""
        self.context.control.begin(dict.fromkeys(("sample", "save"), "a recovery adapter is made, and no LoRA"))
        attended = Attended(self.context.control, lambda what: False, lambda what: iter(()), lambda: self.updates)
        try:
            yield from attended.events(self._work())
        except StopAsked:
            reason = self.context.control.reason
            yield RecoveryStopped(blocks=self.blocks, updates=self.updates, reason=reason, folder=str(self.partial))
        finally:
            if self.walks:
                self.walks.close()

    def _work(self) -> Generator[Event, None, None]:
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
        streams = self._streams(denoiser, shown)
        yield PhaseStarted(phase="recover", total=len(templates) + self.recipe.updates)
        students: dict[str, nn.Module] = {}
        for name, template in zip(loader.names, templates, strict=True):
            self.context.check()
            students[name] = yield from self._block(loader, name, template, streams, done.get(name))
            self.blocks += 1
            yield PhaseProgress(phase="recover", done=self.blocks, note=name)
        before, wanted, shares = streams.plain_error(), streams.answers(), streams.shares
        self.walks.close()
        for name, student in students.items():
            denoiser.module.set_submodule(name, student)
        Recomputing(list(students.values()), keeps_random_state=False)
        if self.recipe.updates:
            take_in(denoiser.module, self.recipe.rank)
        together = self._whole(denoiser, shown, wanted)
        yield from self._together(together, shares)
        after = together.error(shares.measured)
        self._finish(facts, _halves(denoiser.module), before, after)
        note = f"{len(self.layers)} layers, output error {before:.2%} to {after:.2%}"
        yield PhaseFinished(phase="recover", seconds=time.perf_counter() - began, note=note)
        yield RecoveryFinished(
            path=str(self.file),
            report=str(self.report),
            before=before,
            after=after,
            seconds=time.perf_counter() - began,
        )

    def _streams(self, denoiser: Denoiser, shown: Sequence[calibration.Shown]) -> Streams:
        walks, device, dtype = self.walks, self.context.device, self.context.source.dtype
        assert walks

        def start(number: int) -> Walk:
            return walks.start(partial(denoiser.predict, *shown[number].to(device, dtype)))

        return Streams(start, len(shown), Shares.of(len(shown), self.recipe.fitted))

    # -- one block -----------------------------------------------------------------------------------------------

    def _block(
        self, loader: Loader, name: str, teacher: nn.Module, streams: Streams, known: Path | None
    ) -> Generator[Event, None, nn.Module]:
        """Correct one block, or take its correction from the file `known`; let every pass through; the student."""
        device, rank = self.context.device, self.recipe.rank
        loader.block(name, teacher)
        teacher.to(device)
        student = copy.deepcopy(teacher)
        quantize(student, loader.quantizer, device, loader.spared)
        correct(student, {path: _nothing(layer, rank) for path, layer in linears(teacher)})
        before = streams.pass_plain(teacher, student)
        if known:
            _set(student, safetensors.torch.load_file(known))
        else:
            self._fit(BlockFit(teacher, student, streams.pairs()))
            write_atomically(self._place(name), safetensors.torch.save(_halves(student)))
        after = streams.pass_student(teacher, student)
        for path in before:
            self.layers[f"{name}.{path}"] = (before[path], after[path])
            yield LayerRecovered(name=f"{name}.{path}", before=before[path], after=after[path])
        teacher.to("meta")
        memory.release()
        return student

    def _fit(self, fit: BlockFit) -> None:
        for _ in range(self.recipe.sweeps):
            fit.solve(self.recipe)
            self.context.check()
        fit.descend(self.recipe, self.context.check)

    # -- all of them ---------------------------------------------------------------------------------------------

    def _whole(self, denoiser: Denoiser, shown: Sequence[calibration.Shown], wanted: Sequence[Tensor]) -> Together:
        context = self.context
        at_once, dtype = context.plan.settings.train.batch_size, context.source.dtype
        return Together(denoiser, shown, wanted, self.recipe, at_once, context.device, dtype)

    def _together(self, together: Together, shares: Shares) -> Iterator[Event]:
        """Fit all corrections together; what a stop leaves is kept."""
        descent, kept = together.descent, self.partial / "together.state"
        if kept.is_file():
            descent.restore(safetensors.torch.load(kept.read_bytes()))
        try:
            while descent.done < self.recipe.updates:
                self.context.check()
                together.update(shares.taught)
                if descent.done % KEEP == 0:
                    write_atomically(kept, safetensors.torch.save(descent.state()))
                note = f"update {descent.done} of {self.recipe.updates}"
                yield PhaseProgress(phase="recover", done=self.blocks + descent.done, note=note)
        except (StopAsked, GeneratorExit):
            write_atomically(kept, safetensors.torch.save(descent.state()))
            raise
        finally:
            self.updates = descent.done
        descent.end()

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

    def _finish(self, facts: Mapping[str, str], layers: Mapping[str, Tensor], before: float, after: float) -> None:
        held = {f"transformer.{name}": half for name, half in layers.items()}
        write_atomically(self.file, safetensors.torch.save(held, dict(facts)))
        errors = {name: {"before": one, "after": other} for name, (one, other) in self.layers.items()}
        table = {**facts, "before": before, "after": after, "layers": errors}
        write_atomically(self.report, (json.dumps(table, indent=1) + "\n").encode())
        shutil.rmtree(self.partial, ignore_errors=True)


def _nothing(layer: nn.Linear, rank: int) -> Halves:
    kind = torch.bfloat16
    return torch.zeros(rank, layer.in_features, dtype=kind), torch.zeros(layer.out_features, rank, dtype=kind)


def _halves(module: nn.Module) -> dict[str, Tensor]:
    """The corrections of a block, or of the whole, as the file names them."""
    found: dict[str, Tensor] = {}
    for name, layer in module.named_modules():
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
