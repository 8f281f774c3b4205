"""What a plan takes in memory and on disk."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from lorakit.estimate.figures import Disk, Memory
from lorakit.estimate.work import BYTES, Case, cases
from lorakit.family import Family
from lorakit.order import AHEAD
from lorakit.plan import Plan
from lorakit.registry import Part, Shelf
from lorakit.sizes import Linears, Size

STATE = 8.0  # bytes of optimizer state for a parameter, where the optimizer does not tell: two moments in fp32
PYTHON = 1.5e9  # bytes of Python with torch, diffusers and transformers
HEADER = 130  # bytes about one tensor in a safetensors file
NONE = "none"
GATHERED = 3  # sharded blocks that lie whole on a card: that which computes, and the next as it came and as it is used
SLOTS = 2  # blocks that lie on the device while others wait in host memory


def bytes_of(name: str, shelf: Mapping[str, Part], precision: str) -> float | None:
    """Bytes of a weight under the quantizer called `name`; None where it does not tell."""
    part = shelf.get(name)
    return float(BYTES[precision]) if name == NONE else part.held if part else None


def base(
    size: Size, name: str, family: Family, shelf: Mapping[str, Part], precision: str, *, ahead: int = 0
) -> float | None:
    """Bytes of the frozen denoiser under a quantizer, the layers that the family spares under theirs.

    Where modulation is worked out so many passes `ahead`, its layers lie in host memory; answers take their place.
    """
    spared = family.spared.get(name, {})

    def of(one: Linears) -> Iterator[float | None]:
        each = one.weights / len(one.names)
        for layer in one.names:
            if ahead and _is_modulation(layer, family):
                yield float(ahead * one.outputs * one.blocks * BYTES[precision])
                continue
            finer = [other for ending, other in spared.items() if layer == ending or layer.endswith(f".{ending}")]
            held = bytes_of(finer[0] if finer else name, shelf, precision)
            yield None if held is None else each * held

    parts = [found for one in size.linears for found in of(one)]
    if any(found is None for found in parts):
        return None
    return sum(found for found in parts if found is not None) + (size.parameters - size.quantizable) * BYTES[precision]


def _away(plan: Plan, size: Size, held: float) -> float:
    """Bytes of the blocks that wait in host memory, of a base that takes `held` bytes."""
    outside = (size.parameters - size.quantizable) * BYTES[plan.settings.train.precision]
    return max(0.0, held - outside) * min(1.0, plan.settings.speed.offload / size.blocks)


def shared_out(plan: Plan, size: Size, family: Family, held: float) -> float:
    """Bytes of a base's blocks that are divided among GPUs, of a base that takes `held` bytes; 0 where none are.

    What modulation answers ahead is no weight, and lies on each.
    """
    if plan.settings.train.sharding != "sharded":
        return 0.0
    each, ahead = BYTES[plan.settings.train.precision], _ahead(plan)
    layers = (one for one in size.linears for name in one.names if _is_modulation(name, family))
    answers = sum(ahead * one.outputs * one.blocks * each for one in layers)
    return max(0.0, held - (size.parameters - size.quantizable) * each - answers)


def _whole(plan: Plan, size: Size) -> float:
    """The share of all blocks that lies on a card where they are sharded: its own part, and those that are gathered."""
    return min(1.0, 1 / plan.settings.train.gpus + GATHERED * size.largest_block / size.quantizable)


def gathered(plan: Plan, divided: float) -> float:
    """Bytes that come to a GPU in a batch, of `divided` bytes of blocks: once forward, and once backward."""
    return 2 * divided * (1 - 1 / plan.settings.train.gpus)


def _ahead(plan: Plan) -> int:
    """Passes whose modulation is worked out at once; 0 where none is."""
    if plan.settings.speed.modulation != "table":
        return 0
    return max(AHEAD, plan.arithmetic.effective_batch // plan.settings.train.gpus)


def _is_modulation(layer: str, family: Family) -> bool:
    return any(layer == ending or layer.endswith(f".{ending}") for ending in family.modulation)


def _modulation(plan: Plan, size: Size, family: Family) -> float:
    """Bytes of the modulation layers that a plan keeps in host memory."""
    if plan.settings.speed.modulation != "table":
        return 0.0
    each = BYTES[plan.settings.train.precision]
    layers = (one for one in size.linears for name in one.names if _is_modulation(name, family))
    return float(sum(one.weights / len(one.names) for one in layers) * each)


def quantizers(shelf: Shelf[Part]) -> list[str]:
    """Every quantizer by the memory it takes, full precision first."""
    return sorted(shelf, key=lambda name: (name != NONE, -(shelf[name].held or 0.0), name))


def memory(
    plan: Plan, size: Size, family: Family, shelf: Shelf[Part], optimizer: Part, found: list[Case], context: float
) -> Iterator[Memory]:
    """Memory under every quantizer that tells how much it takes."""
    settings = plan.settings
    each, batch = BYTES[settings.train.precision], settings.train.batch_size
    trained = size.adapter_parameters(settings.lora.targets, settings.lora.rank)
    adapter = trained * (8 + (STATE if optimizer.held is None else optimizer.held) + (4 if settings.train.ema else 0))
    again = recomputed(plan, size)
    activations = max(_activations(plan, size, case, again) for case in found) * each * batch
    if again < size.blocks and each < 4:
        # the adapter's weights in the number format of what they are multiplied with
        activations += trained * each * (1 - again / size.blocks)
    temporary = max(size.running.temporary * size.length(case.tokens) for case in found) * each * batch
    largest = max(one.inputs * one.outputs for one in size.linears)
    coder = size.coder.parameters * 4
    pixels = max(case.pixels for case in found)
    draws = settings.sampling.prompts and (settings.sampling.every or settings.sampling.strengths)
    drawn = coder + size.coder.decoding * settings.sampling.width * settings.sampling.height if draws else 0.0
    for name in quantizers(shelf):
        held = base(size, name, family, shelf, settings.train.precision, ahead=_ahead(plan))
        if held is None:
            continue
        divided = 0.0 if shelf[name].stays else shared_out(plan, size, family, held)
        held -= divided * (1 - _whole(plan, size))
        away = _away(plan, size, held)
        held -= away * max(0.0, 1 - SLOTS / max(1, settings.speed.offload))
        yield Memory(
            quantization=name,
            base=held,
            adapter=adapter,
            activations=activations,
            workspace=temporary + (0 if name == NONE else 2 * each * largest),
            context=context,
            text=(0.0 if settings.text_encoder.device == "cpu" else size.text.parameters * each) + context,
            images=coder + size.coder.encoding * pixels + context,
            previews=held + adapter + drawn + context if drawn else 0.0,
            away=away,
            gathered=gathered(plan, divided),
        )


def recomputed(plan: Plan, size: Size) -> int:
    """Blocks that recompute their activations, as planned; all of them where free memory decides later."""
    if not plan.settings.train.gradient_checkpointing:
        return 0
    planned = plan.settings.speed.recompute
    return min(planned, size.blocks) if isinstance(planned, int) else size.blocks


def _activations(plan: Plan, size: Size, case: Case, again: int) -> float:
    """Elements that one picture keeps for its backward pass where so many blocks recompute theirs."""
    kept = size.kept(case.tokens, plan.settings.lora.targets) / size.blocks
    held = size.running.checkpointed * size.length(case.tokens) * again / size.blocks
    return held + kept * (size.blocks - again) + (kept if again else 0)


def needed(plan: Plan, size: Size, again: int) -> float:
    """Bytes that a batch of the largest case takes beside weights where so many blocks recompute their activations."""
    settings = plan.settings
    each = BYTES[settings.train.precision] * settings.train.batch_size
    return max(
        _activations(plan, size, case, again) + size.running.temporary * size.length(case.tokens)
        for case in cases(plan, size)
    ) * float(each)


def fitting(plan: Plan, size: Size, room: float) -> int:
    """The fewest blocks that must recompute their activations for a batch to take no more than `room` bytes."""
    counts = (count for count in range(size.blocks + 1) if needed(plan, size, count) <= room)
    return next(counts, size.blocks)


def host(plan: Plan, size: Size, family: Family, away: float = 0.0) -> float:
    """Bytes of the machine's own memory on a GPU, where `away` bytes of blocks wait in it.

    The text encoder is read there before it is moved. Modulation that is worked out ahead stays there, and so do
    blocks that travel.
    """
    each = BYTES[plan.settings.train.precision]
    block = size.quantizable / size.blocks * each
    return (
        PYTHON
        + size.coder.parameters * 4
        + max(size.text.parameters * each, 2 * block + _modulation(plan, size, family) + away)
    )


def exported(plan: Plan, size: Size) -> float:
    """Bytes of the exported file."""
    lora = plan.settings.lora
    trained = size.adapter_parameters(lora.targets, lora.rank)
    return trained * BYTES[plan.settings.save.dtype] + 2 * HEADER * size.adapter_layers(lora.targets)


def disk(plan: Plan, size: Size, family: Family, optimizer: Part, found: list[Case], *, local: bool) -> Disk:
    """Bytes on disk."""
    settings, sums = plan.settings, plan.arithmetic
    parameters = size.parameters + size.text.parameters + size.coder.parameters
    trained = size.adapter_parameters(settings.lora.targets, settings.lora.rank)
    state = trained * (4 + (STATE if optimizer.held is None else optimizer.held) + (4 if settings.train.ema else 0))
    return Disk(
        download=0.0 if local else float(parameters * size.stored),
        cache=sums.images * _cached(plan, size, family, found),
        checkpoints=_checkpoints(plan) * (exported(plan, size) + state),
    )


def _cached(plan: Plan, size: Size, family: Family, found: list[Case]) -> float:
    """Bytes of an encoded sample, on average over what is shown: latents in fp32, and its text."""
    shown = max(1, sum(case.pictures for case in found))
    latents = size.coder.channels * family.patch**2 * 4
    text = size.text.width * BYTES[plan.settings.train.precision]

    def each(case: Case) -> float:
        captions = 2 if case.tokens.reference and plan.settings.train.caption_dropout else 1
        return case.tokens.seen("image") * latents + case.tokens.text * text * captions

    return sum(each(case) * case.pictures for case in found) / shown


def _checkpoints(plan: Plan) -> int:
    """How many checkpoints lie there at the end."""
    save, sums = plan.settings.save, plan.arithmetic
    if not save.every:
        return 0
    made = max(1, round(sums.epochs)) if save.every == "epoch" else -(-sums.updates // int(save.every))
    return min(save.keep, made)
