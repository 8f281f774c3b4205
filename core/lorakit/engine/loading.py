"""The model on its device, quantized as planned, with its adapter, and every promise of the plan checked."""

from __future__ import annotations

from collections.abc import Iterator

from lorakit.engine.adapter import Adapter, attach
from lorakit.engine.loop import recompute
from lorakit.engine.parts import Denoiser
from lorakit.engine.phases import Context, Work, phase
from lorakit.engine.quantizers import Quantizer, held, quantize
from lorakit.errors import ModelError
from lorakit.plan import Plan


def load_model(context: Context) -> Work[tuple[Denoiser, Adapter]]:
    """The denoiser on its device, quantized as planned, with its adapter, and every promise checked."""
    settings = context.plan.settings
    denoisers: list[Denoiser] = []

    def load() -> Iterator[str]:
        denoisers.append(context.family.denoiser(context.plan, context.source))
        yield denoisers[0].component

    yield from phase("load", 1, load())
    denoiser = denoisers[0]
    context.check()
    quantizer: Quantizer = context.shelves.quantizers[settings.quantization.name].resolve()()
    converted: list[int] = []

    def convert() -> Iterator[str]:
        for number, block in enumerate(denoiser.blocks, 1):
            converted.append(quantize(block, quantizer, context.device))
            yield f"block {number}"

    if settings.quantization.name != "none":
        yield from phase("quantize", len(denoiser.blocks), convert(), lambda: f"{sum(converted)} layers")
    denoiser.module.to(context.device)
    adapter = attach(denoiser, settings.lora, settings.seed, context.device)
    if settings.train.gradient_checkpointing:
        recompute(denoiser.blocks, keeps_random_state=settings.lora.dropout > 0)
    check_facts(context.plan, denoiser, adapter, quantizer)
    return denoiser, adapter


def check_facts(plan: Plan, denoiser: Denoiser, adapter: Adapter, quantizer: Quantizer) -> None:
    """The plan's promises, as facts of what was loaded; ModelError where one does not hold."""
    own = {id(half) for layer in adapter.layers.values() for half in (layer.lora_A, layer.lora_B)}
    strays = [name for name, one in denoiser.module.named_parameters() if one.requires_grad and id(one) not in own]
    if strays:
        raise ModelError(f"{strays[0]} would be trained, and only the adapter may be", why="a plugin unfroze it")
    if not own:
        raise ModelError("the adapter stands on no layer", where="lora.targets")
    name = plan.settings.quantization.name
    if name == "none":
        return
    quantized, plain = held(denoiser.blocks, quantizer)
    if plain or not quantized:
        raise ModelError(
            f"the plan says {name}, and {plain} of {plain + quantized} layers of the blocks are not",
            fix="This is a bug of the quantizer; choose another with --set quantization.name=NAME.",
        )
