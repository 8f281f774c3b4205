"""What to change when a run does not fit or does not settle: the ladders, in the order worth trying."""

from __future__ import annotations

from collections.abc import Iterator

from lorakit.estimate.savings import Changes, Saves
from lorakit.estimate.words import size
from lorakit.plan import Plan

SLOWER = (
    "look whether something else uses the device (`nvidia-smi`)",
    "look whether the device is hot and lowers its clock",
    "look whether its memory is nearly full: it then goes slowly before it runs out",
)
GROWING = (
    "look whether something else runs in the process: a plugin that keeps what events hold, for one",
    "`lorakit resume` after a stop begins with fresh memory; nothing is lost by it",
)


def gradients(plan: Plan) -> Iterator[str]:
    """What to look at when gradients grow."""
    if not plan.settings.train.max_grad_norm:
        yield "train.max_grad_norm = 1: gradients are not shortened in this run"
    yield from loss_spikes(plan)


def dead(plan: Plan) -> Iterator[str]:
    """What to look at when an adapter does not learn."""
    yield f"lora.targets: does a gradient pass through {', '.join(plan.settings.lora.targets[:3])}?"
    if plan.settings.optimizer.name != "adamw":
        yield f"optimizer.name = 'adamw' instead of '{plan.settings.optimizer.name}'"
    yield f"optimizer.learning_rate = {plan.settings.optimizer.learning_rate:g} may be too low"


def previews(plan: Plan) -> Iterator[str]:
    """What to look at when a preview shows nothing."""
    yield "the earlier previews: if the first one is empty too, the model or its image coder is at fault"
    rate = plan.settings.optimizer.learning_rate
    yield f"an earlier checkpoint, and optimizer.learning_rate = {rate / 2:g} in a new run"
    if plan.settings.sampling.guidance > 5:
        yield f"sampling.guidance = {plan.settings.sampling.guidance:g} is much; 3 to 4 burn less"


def out_of_memory(plan: Plan, saves: Saves) -> Iterator[str]:
    """What to change, the cheapest first, with what each alone saves by the estimate.

    What the plan does already and what would save nothing are left out.

    Encoded text and pictures are always cached and the encoders unloaded. Accumulation is not on the ladder: it
    changes how many batches make an update, never how much one batch needs.
    """
    for words, changes in _smaller(plan):
        saved = saves(changes)
        if saved is None:
            yield words
        elif saved > 0:
            yield f"{words}: saves about {size(saved)}"
    if plan.settings.quantization.name == "int8":
        yield "a smaller quantization, together with a recovery adapter made for it"
    yield "a card with more memory; train.accumulation does not help"


def _smaller(plan: Plan) -> Iterator[tuple[str, Changes]]:
    """What takes less memory, and the settings that it is."""
    settings, side = plan.settings, plan.settings.train.resolution
    if settings.train.batch_size > 1:
        same = (
            f"with train.accumulation = {settings.train.batch_size * settings.train.accumulation} for the same update"
        )
        yield f"train.batch_size = 1 ({same})", {"train": {"batch_size": 1}}
    if settings.quantization.name == "none":
        yield "quantization.name = 'int8'", {"quantization": {"name": "int8"}}
    if side > 512:
        smaller = max(512, side * 3 // 4 // 64 * 64)
        yield f"train.resolution = {smaller}", {"train": {"resolution": smaller}}
    if not settings.train.gradient_checkpointing:
        checkpointed = {"train": {"gradient_checkpointing": True}}
        yield "train.gradient_checkpointing = true, for about a third more time", checkpointed
    elif isinstance(settings.speed.recompute, int):
        yield "speed.recompute = 'all'", {"speed": {"recompute": "all"}}
    if settings.lora.rank > 16:
        yield "lora.rank = 16", {"lora": {"rank": 16}}


def loss_spikes(plan: Plan) -> Iterator[str]:
    """What to look at when the loss jumps, the likeliest first."""
    if plan.settings.text_encoder.train:
        yield "text_encoder.train = false: a text encoder that moves pulls the ground away"
    rate = plan.settings.optimizer.learning_rate
    if rate > 1e-4:
        yield f"optimizer.learning_rate = {max(1e-4, rate / 2):g}, half of now"
    batch = plan.arithmetic.effective_batch
    if batch < 4:
        yield f"train.accumulation = {4 * plan.settings.train.accumulation // max(1, batch)}: {batch} passes are few"
    yield "the pictures and captions named here: one that is broken or unlike the others"
