"""What is true of Stable Diffusion 1.5: its facts and its rules. No torch here: plans must not wait for it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from lorakit import Family, Problem, Rule, Variant, hookimpl, only, prefer

if TYPE_CHECKING:
    from lorakit import Plan, Request
    from lorakit.engine.parts import Source
    from lorakit_hello.model import HelloDenoiser, HelloImageCoder, HelloTextEncoder


class Hello(Family):
    """Stable Diffusion 1.5 and its fine-tunes: a UNet of 0.9 billion parameters, told by one CLIP."""

    name = "hello"
    title = "Stable Diffusion 1.5"
    variants: ClassVar = {
        "base": Variant(
            source="stable-diffusion-v1-5/stable-diffusion-v1-5",
            pipeline="StableDiffusionPipeline",
            architecture="stable-diffusion-v1/lora",
            resolution=512,
            summary="text to image; any fine-tune of it by --source",
        )
    }
    default_variant = "base"
    components = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
    lora_targets = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2")
    text_tokens = 77
    side_multiple = 64
    base_model_version = "sd_v1"
    layout = "kohya"

    @hookimpl
    def scheduler_rules(self, request: Request) -> Iterator[Rule]:
        """Discrete diffusion only."""
        yield only("scheduler.name", "ddpm", because="it was trained to predict noise at 1000 discrete levels")

    @hookimpl
    def sampling_rules(self, request: Request) -> Iterator[Rule]:
        """Classifier-free guidance."""
        yield prefer("sampling.guidance", 7.5, because="guidance_scale of the model card")
        yield prefer("sampling.steps", 50, because="steps of the model card")

    @hookimpl
    def check_plan(self, plan: Plan) -> Iterator[Problem]:
        """What is allowed, and rarely meant."""
        if plan.settings.train.resolution > 768:
            yield Problem(f"train.resolution = {plan.settings.train.resolution}: this model draws doubles over 768")

    def exported_name(self, component: str, layer: str) -> str:
        """kohya's name of a layer, which diffusers and ComfyUI read too."""
        return f"lora_unet_{layer}".replace(".", "_")

    def text_encoder(self, plan: Plan, source: Source) -> HelloTextEncoder:
        """CLIP-L."""
        from lorakit_hello.model import HelloTextEncoder

        return HelloTextEncoder(source)

    def image_coder(self, plan: Plan, source: Source) -> HelloImageCoder:
        """The VAE."""
        from lorakit_hello.model import HelloImageCoder

        return HelloImageCoder(source)

    def denoiser(self, plan: Plan, source: Source) -> HelloDenoiser:
        """The UNet."""
        from lorakit_hello.model import HelloDenoiser

        return HelloDenoiser(source)

    def toy(self, folder: Path, variant: str) -> None:
        """A 64-pixel toy of the real classes with random weights."""
        from lorakit_hello.toy import write

        write(folder)
