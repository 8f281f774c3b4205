"""Settings of what a run shows, keeps and measures."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from lorakit.sections import Every, Input, Section


class Sampling(Section):
    """Previews drawn during training."""

    prompts: tuple[Annotated[str, Field(min_length=1)], ...] | None = Field(
        None, max_length=64, description="What to draw. Default: the first two captions."
    )
    references: tuple[tuple[Annotated[str, Field(min_length=1)], ...], ...] | None = Field(
        None,
        max_length=64,
        description="Reference pictures of each prompt, a list for each. Default: those of the first captions.",
    )
    recipe: str | None = Field(
        None, description="Guidance, steps and shift that somebody publishes together, by the family's name for them."
    )
    negative: str = Field(" ", description="What true guidance moves away from.")
    guidance: float | None = Field(None, ge=1, le=100, description="Guidance strength; 1 is none.")
    steps: int | None = Field(None, ge=2, le=1000, description="Sampling steps.")
    shift: float | None = Field(
        None, gt=0, le=100, description="Fixed shift of the noise levels. Default: the family's formula, by size."
    )
    width: int | None = Field(None, ge=16, le=8192, description="Width in pixels. Default: the training resolution.")
    height: int | None = Field(None, ge=16, le=8192, description="Height in pixels. Default: the training resolution.")
    seed: int = Field(42, ge=0, lt=2**63, description="Seed of the previews' noise.")
    every: Every = Field("epoch", description="Draw every so many updates, or each `epoch`; 0 is never.")
    strengths: tuple[Annotated[float, Field(ge=-4, le=4)], ...] = Field(
        (0.0, 0.5, 1.0), max_length=8, description="Strengths drawn side by side when training ends."
    )


class Save(Section):
    """Checkpoints and the file."""

    every: Every = Field("epoch", description="Keep a checkpoint every so many updates, or each `epoch`; 0 is never.")
    keep: int = Field(10, ge=1, le=10_000, description="Checkpoints kept; the oldest go first.")
    dtype: Literal["bf16", "fp16", "fp32"] = Field("bf16", description="Number format of the exported file.")
    metadata: Literal["full", "minimal", "none"] = Field(
        "full",
        description="What the file says of its making; `full` includes folder names, caption statistics, prompts and "
        "settings.",
    )
    workflow: dict[Input, str | int | float] = Field(
        {},
        description="Inputs of the ComfyUI workflow beside the file to set otherwise, by their names in its nodes: "
        "`workflow.unet_name` for another file of the model.",
    )
    report: bool = Field(True, description="Write `report.html` at every checkpoint and at the end.")


class Validation(Section):
    """What is measured while training goes on, on pictures that are held out and on others."""

    pictures: Annotated[int, Field(ge=0)] | Literal["auto"] = Field(
        "auto", description="Pictures never trained on; `auto` is a tenth, from 2 to 8, and none of fewer than 12."
    )
    every: Every | Annotated[str, Field(pattern=r"^[1-9]\d* epochs$")] | None = Field(
        None, description="Measure so many updates apart, each `epoch` or `3 epochs`, and at both ends; 0 is never."
    )
    prompts: tuple[Annotated[str, Field(min_length=1)], ...] = Field(
        ("a wooden chair beside a window", "a street with parked cars in the rain"),
        max_length=16,
        description="Prompts that have nothing to do with the pictures, to measure drift on.",
    )
