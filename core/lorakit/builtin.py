"""The nouns that core itself brings, through the same door as anybody's."""

from __future__ import annotations

from lorakit.hooks import hookimpl
from lorakit.registry import Part, Registry

SCHEDULERS = (
    Part(
        name="flowmatch",
        summary="flow matching: predict the velocity from picture to noise",
        load="lorakit.engine.schedulers:FlowMatch",
        offers=("sigmoid", "uniform", "logit-normal", "shift", "weighted"),
        settings=("mean", "std", "shift"),
    ),
    Part(
        name="ddpm",
        summary="discrete diffusion: predict the noise, or the velocity, at one of 1000 levels",
        load="lorakit.engine.ddpm:Ddpm",
        offers=("uniform",),
        settings=("prediction", "min_snr_gamma", "noise_offset"),
    ),
)
QUANTIZERS = (
    Part(
        name="none",
        summary="keep the base in the training precision",
        load="lorakit.engine.quantizers:Keep",
        captured=True,
    ),
    Part(
        name="int8",
        summary="8-bit weights by bitsandbytes, half the memory of bf16",
        load="lorakit.engine.int8:Int8",
        requires=("bitsandbytes",),
        held=1.002,  # and a fp32 scale for each row
        restoring=7,  # int8 to bf16, and times its scale
        captured=True,
    ),
    Part(
        name="int8-fast",
        summary="8-bit weights, multiplied with 8-bit activations and gradients on the integer units",
        load="lorakit.engine.int8_fast:Int8Fast",
        held=1.002,  # and a fp32 scale for each row; estimates take its products for bf16 ones
        stays=True,  # its layers choose by the first batch how they multiply
        captured=True,  # which is before anything is captured
        kernels=True,
    ),
    Part(
        name="int4",
        summary="4-bit weights (NF4) by bitsandbytes, a quarter of the memory of bf16",
        load="lorakit.engine.int4:Int4",
        requires=("bitsandbytes",),
        held=0.516,  # and a scale in 8 bits for each 64 weights
        restoring=2.5,  # one kernel
    ),
    Part(
        name="int2",
        summary="2-bit weights packed by optimum-quanto, a sixth of the memory of bf16",
        load="lorakit.engine.int2:Int2",
        requires=("optimum.quanto",),
        install="optimum-quanto",
        held=0.3125,  # and a scale and a shift in bf16 for each 64 weights
        restoring=11,  # four times shifted and masked, joined, cast, scaled
    ),
)
OPTIMIZERS = (
    Part(name="adamw", summary="AdamW, fused", load="lorakit.engine.optimizers:adamw", held=8, skips=True),
    Part(
        name="adamw8bit",
        summary="AdamW with both moments in 8 bits, by bitsandbytes",
        load="lorakit.engine.optimizers:adamw8bit",
        requires=("bitsandbytes",),
        held=2.03,  # and a fp32 scale for each 256
    ),
)
IMPORTERS = (
    Part(name="ai-toolkit", summary="a YAML of ai-toolkit", load="lorakit.importers.ai_toolkit:AiToolkit"),
    Part(
        name="kohya",
        summary="a dataset TOML, a TOML of arguments or a command line of sd-scripts or musubi-tuner",
        load="lorakit.importers.kohya:Kohya",
    ),
    Part(
        name="diffusers",
        summary="a command line of a DreamBooth LoRA example of diffusers",
        load="lorakit.importers.diffusers_scripts:DiffusersScripts",
    ),
)

TRACKERS = (
    Part(
        name="tensorboard",
        summary="TensorBoard logs in the run's folder",
        load="lorakit.trackers.tensorboard:TensorBoard",
        requires=("tensorboard",),
        install="'lorakit[tensorboard]'",
    ),
    Part(
        name="wandb",
        summary="Weights & Biases",
        load="lorakit.trackers.wandb:WeightsAndBiases",
        requires=("wandb",),
        install="'lorakit[wandb]'",
    ),
    Part(
        name="mlflow",
        summary="MLflow, a server's or a database beside the runs",
        load="lorakit.trackers.mlflow:MLflow",
        requires=("mlflow", "sqlalchemy", "alembic"),
        install="'lorakit[mlflow]'",
    ),
)


@hookimpl
def register(registry: Registry) -> None:
    """Register core's schedulers, quantizers, optimizers, importers and trackers."""
    for scheduler in SCHEDULERS:
        registry.scheduler(scheduler)
    for quantizer in QUANTIZERS:
        registry.quantizer(quantizer)
    for optimizer in OPTIMIZERS:
        registry.optimizer(optimizer)
    for importer in IMPORTERS:
        registry.importer(importer)
    for tracker in TRACKERS:
        registry.tracker(tracker)
