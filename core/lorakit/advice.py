"""What to change when a run does not fit or does not settle: the ladders, in the order worth trying."""

from __future__ import annotations

from collections.abc import Iterator

from lorakit.plan import Plan


def out_of_memory(plan: Plan) -> Iterator[str]:
    """What to change, the cheapest first, leaving out what the plan does already.

    Encoded text and pictures are always cached and the encoders unloaded. Accumulation is not on the ladder: it
    changes how many batches make an update, never how much one batch needs.
    """
    settings, side = plan.settings, plan.settings.train.resolution
    if settings.train.batch_size > 1:
        yield f"train.batch_size = 1 (with train.accumulation = {settings.train.batch_size} for the same update)"
    if settings.quantization.name == "none":
        yield "quantization.name = 'int8', half of the base's memory"
    if side > 512:
        smaller = max(512, side * 3 // 4 // 64 * 64)
        yield f"train.resolution = {smaller}, {(smaller / side) ** 2:.0%} of the activations"
    if not settings.train.gradient_checkpointing:
        yield "train.gradient_checkpointing = true, far fewer activations for about a third more time"
    if settings.lora.rank > 16:
        yield "lora.rank = 16"
    if settings.quantization.name == "int8":
        yield "a smaller quantization, together with a recovery adapter made for it"
    yield "a card with more memory; train.accumulation does not help"


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
