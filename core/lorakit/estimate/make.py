"""From a plan and a device to what it will take, and what is wrong with that."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from lorakit.estimate import space, work
from lorakit.estimate.figures import Duration, Estimate, Memory
from lorakit.estimate.model import local_folder, size_of
from lorakit.estimate.rates import Rates
from lorakit.family import Family
from lorakit.plan import Plan
from lorakit.problem import Problem
from lorakit.registry import Shelves
from lorakit.sizes import Size

GB = 1e9
HOUR = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What a person says of the machine: its GPU memory in bytes, the price of an hour, and the hours there are."""

    memory: float | None = None
    price: float | None = None
    hours: float | None = None


NOTHING = Wanted()


def estimate(
    plan: Plan, family: Family, shelves: Shelves, rates: Rates | None = None, wanted: Wanted = NOTHING
) -> Estimate | None:
    """What the plan will take, on the device of those rates; None where nobody tells the model's size."""
    size = size_of(plan, family)
    if size is None:
        return None
    settings, found = plan.settings, work.cases(plan, size)
    optimizer = shelves.optimizers[settings.optimizer.name]
    typical = max(found, key=lambda case: case.pictures)
    context = rates.context if rates else 1.0 * GB
    memory = tuple(space.memory(plan, size, family, shelves.quantizers, optimizer, found, context))
    own = next((one for one in memory if one.quantization == settings.quantization.name), None)
    away, gathered = (own.away, own.gathered) if own else (0.0, 0.0)
    made = Estimate(
        parameters=size.parameters,
        trained=size.adapter_parameters(settings.lora.targets, settings.lora.rank),
        file=space.exported(plan, size),
        tokens=typical.tokens,
        flops=_update_flops(plan, size, found),
        quantization=settings.quantization.name,
        memory=memory,
        host=space.host(plan, size, family, away),
        disk=space.disk(plan, size, family, optimizer, found, local=local_folder(plan, family) is not None),
        device_memory=wanted.memory or (rates.memory if rates else None),
        price=wanted.price,
    )
    if rates and plan.arithmetic.images and settings.train.precision in rates.speeds:
        made = replace(
            made,
            device=rates.name,
            ceiling=rates.ceiling[settings.train.precision],
            source=rates.source,
            measured=bool(rates.measured),
            duration=_duration(plan, size, found, rates, shelves, _predictions(plan, family), (away, gathered)),
        )
    return replace(made, problems=tuple(_problems(plan, made, wanted)))


def _update_flops(plan: Plan, size: Size, found: list[work.Case]) -> float:
    """FLOPs of an update, on average over the run."""
    pictures = sum(case.pictures for case in found)
    if not pictures:
        return work.flops(plan, size, found[0].tokens) * plan.arithmetic.effective_batch
    each = sum(work.flops(plan, size, case.tokens) * case.pictures for case in found) / pictures
    return each * plan.arithmetic.passes / max(1, plan.arithmetic.updates)


def _predictions(plan: Plan, family: Family) -> int:
    """Predictions in a sampling step: true guidance takes a second one, of the negative prompt."""
    guided = family.variants[plan.settings.variant].guidance == "true" and plan.settings.sampling.guidance > 1
    return 2 if guided else 1


def _duration(
    plan: Plan,
    size: Size,
    found: list[work.Case],
    rates: Rates,
    shelves: Shelves,
    predictions: int,
    brought: tuple[float, float],
) -> Duration:
    """`brought` are bytes of blocks that wait in host memory, and of those that come from other GPUs in a batch."""
    settings, sums = plan.settings, plan.arithmetic
    name = settings.quantization.name
    quantizer = None if name == space.NONE else shelves.quantizers[name]

    away, gathered = brought
    travelling = max(work.travelling(away, rates), work.gathering(gathered, rates))

    def bucket(case: work.Case) -> float:
        full, rest = divmod(case.pictures, settings.train.global_batch)
        sizes = [(full, settings.train.batch_size), (1, -(-rest // settings.train.gpus))]  # the fullest GPU's share
        return sum(
            times * max(work.seconds(plan, size, case.tokens, batch, rates, quantizer), travelling)
            for times, batch in sizes
            if times * batch
        )

    epoch = sum(bucket(case) for case in found)
    batches = sums.batches / max(1, sums.updates)  # of an update
    own = work.UPDATE_KERNELS * rates.kernel[0] * (0 if rates.hides else 1)
    update = epoch / sums.batches_per_epoch * batches + own
    floor = _update_flops(plan, size, found) / rates.ceiling[settings.train.precision] / settings.train.gpus
    return Duration(
        update_floor=floor,
        update=max(floor, update),
        floor=floor * sums.updates,
        expected=max(floor, update) * sums.updates,
        previews=work.drawing(plan, size, rates, quantizer, predictions, work.gathering(gathered / 2, rates)),
    )


# -- what is wrong ---------------------------------------------------------------------------------------------------


def _problems(plan: Plan, made: Estimate, wanted: Wanted) -> Iterator[Problem]:
    yield from _room(plan, made)
    yield from _time(plan, made, wanted)
    if plan.settings.text_encoder.train:
        yield Problem(
            "the estimate leaves out the text encoders that are trained: their memory and their time come on top"
        )
    free = _free(plan.folder)
    needed = made.disk.cache + made.disk.checkpoints
    if free is not None and needed > free:
        yield Problem(
            f"{plan.folder} has {free / GB:.1f} GB free, and cache and checkpoints take {needed / GB:.1f} GB: lower "
            "save.keep, or choose another output"
        )


def _room(plan: Plan, made: Estimate) -> Iterator[Problem]:
    """What does not fit on the device, and what would."""
    room, chosen = made.device_memory, made.chosen
    if room is None or chosen is None or chosen.peak <= room:
        return
    parts = {
        "training": chosen.training,
        "encoding text": chosen.text,
        "encoding pictures": chosen.images,
        "previews": chosen.previews,
    }
    over = ", ".join(f"{name} {size / GB:.1f} GB" for name, size in parts.items() if size > room)
    remedies = " and ".join(_remedies(plan, made, chosen, room))
    yield Problem(f"{made.quantization} does not fit {room / GB:g} GB: {over}; {remedies}")


def _remedies(plan: Plan, made: Estimate, chosen: Memory, room: float) -> Iterator[str]:
    settings = plan.settings
    if chosen.text > room:
        yield "encode texts on the CPU, which takes longer (text_encoder.device = 'cpu')"
        return
    if chosen.previews > room >= chosen.training:
        yield "draw smaller previews (sampling.width, sampling.height) or none (sampling.every = 0, strengths = [])"
        return
    fitting = [one.quantization for one in made.memory if one.peak <= room]
    if fitting:
        yield f"{' or '.join(fitting)} {'does' if len(fitting) == 1 else 'do'}"
    elif not settings.train.gradient_checkpointing:
        yield "turn train.gradient_checkpointing on"
    elif settings.train.batch_size > 1:
        yield "lower train.batch_size, and raise train.accumulation for the same update"
    elif settings.train.sharding == "replicated":
        yield "let each GPU have a part of every block (train.sharding = 'sharded')"
    elif not settings.speed.offload and settings.train.gpus == 1:
        yield "let blocks wait in host memory (speed.offload)"
    else:
        yield "lower train.resolution, lora.rank or lora.targets, or take a larger card"


def _time(plan: Plan, made: Estimate, wanted: Wanted) -> Iterator[Problem]:
    """Hours that do not suffice."""
    if wanted.hours is None or made.duration is None:
        return
    hours, sums, time = wanted.hours, plan.arithmetic, made.duration
    rest = f"{sums.updates} updates of {sums.passes / max(1, sums.updates):g} passes on {made.device}"
    if hours * HOUR < time.floor:
        fits = int(hours * HOUR / time.update)
        yield Problem(
            f"{hours:g} h are under the floor of {time.floor / HOUR:.1f} h for {rest}: no software is faster than the "
            f"device; {fits} updates ({fits / max(1.0, sums.updates_per_epoch):.2g} epochs) can be expected in them"
        )
    elif hours * HOUR < time.whole:
        fits = int(max(0.0, hours * HOUR - time.previews) / time.update)
        yield Problem(
            f"{hours:g} h may not suffice: {time.whole / HOUR:.1f} h are expected for {rest}; {fits} updates can be "
            "expected in them"
        )


def _free(folder: Path) -> float | None:
    """Free bytes where the folder is, or will be."""
    place = next((one for one in (folder, *folder.absolute().parents) if one.exists()), None)
    try:
        return float(shutil.disk_usage(place).free) if place else None
    except OSError:
        return None
