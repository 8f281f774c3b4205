"""Every setting of a run, decided: what `lorakit.settings` may leave open is said here."""

from __future__ import annotations

from typing import Literal

from lorakit.outcomes import Sampling, Validation
from lorakit.sections import Name
from lorakit.settings import Data, Lora, Model, Quantization, Scheduler, Settings, Speed, TextEncoder, Train


class PlannedModel(Model):
    """Model settings, decided."""

    source: str


class PlannedData(Data):
    """A folder, decided; `repeats` may still differ by sub-folder and stays None where folder names decide."""

    trigger: str
    resolution: int


class PlannedLora(Lora):
    """Adapter settings, decided."""

    alpha: float
    targets: tuple[str, ...]


class PlannedTrain(Train):
    """Training settings, decided."""

    updates: int
    epochs: float
    resolution: int
    gpus: int = 1

    @property
    def global_batch(self) -> int:
        """Pictures that all GPUs together take at once."""
        return self.gpus * self.batch_size


class PlannedScheduler(Scheduler):
    """Objective, decided."""

    name: str
    timesteps: str


class PlannedQuantization(Quantization):
    """Quantizer, decided."""

    name: str


class PlannedTextEncoder(TextEncoder):
    """Text encoder policy, decided."""

    train: bool
    template: str
    cache: bool


class PlannedSpeed(Speed):
    """Ways to be faster, decided; the defaults are what runs did that were planned before there was a choice."""

    adapter: Literal["fused", "plain"] = "plain"
    attention: Literal["timed", "torch"] = "torch"
    products: Literal["triton", "torch"] | None = "torch"
    compile: Literal["auto", "blocks", "off"] = "off"
    recompute: Literal["all", "fit"] | int = "all"
    graphs: Literal["on", "off"] = "off"
    losses: Literal["late", "at once"] = "at once"


class PlannedSampling(Sampling):
    """Previews, decided."""

    prompts: tuple[str, ...]
    references: tuple[tuple[str, ...], ...]
    guidance: float
    steps: int
    width: int
    height: int


class PlannedValidation(Validation):
    """Validation, decided."""

    every: int | str


class Planned(Settings):
    """Every setting of a run, decided."""

    variant: str
    name: Name
    model: PlannedModel
    data: tuple[PlannedData, ...]
    lora: PlannedLora
    train: PlannedTrain
    scheduler: PlannedScheduler
    quantization: PlannedQuantization
    text_encoder: PlannedTextEncoder
    speed: PlannedSpeed = PlannedSpeed()
    sampling: PlannedSampling
    validation: PlannedValidation
