"""What is true of SDXL: its facts, its rules, and how its files call its layers."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from lorakit import Family, Problem, Recipe, Rule, Variant, hookimpl, only, prefer, toys
from lorakit_sdxl.size import size

if TYPE_CHECKING:
    from lorakit import Plan, Request
    from lorakit.engine.parts import Source
    from lorakit.single_file import Header
    from lorakit_sdxl.model import SdxlDenoiser, SdxlImageCoder, SdxlTextEncoder

TOY = Path(__file__).parent / "toy"
LINEARS = (
    *("proj_in", "proj_out", "transformer_blocks.#.ff.net.0.proj", "transformer_blocks.#.ff.net.2"),
    *(f"transformer_blocks.#.attn{one}.{name}" for one in "12" for name in ("to_q", "to_k", "to_v", "to_out.0")),
)
PLACE = re.compile(r"(down|up)_blocks\.(\d+)\.attentions\.(\d+)\.(.+)")
TEXT_TARGETS = (*(f"self_attn.{name}_proj" for name in ("q", "k", "v", "out")), "mlp.fc1", "mlp.fc2")
# every place that kohya's numbering can tell from the others
PLACES = (
    *(f"{side}_blocks.{stage}.attentions.{one}" for side in ("down", "up") for stage in range(4) for one in range(3)),
    "mid_block.attentions.0",
)
UNET = "model.diffusion_model.input_blocks.0.0.weight"
NEEDED = {
    "the UNet": UNET,
    "the VAE": "first_stage_model.encoder.conv_in.weight",
    "CLIP-L": "conditioner.embedders.0.transformer.text_model.embeddings.position_embedding.weight",
    "OpenCLIP-bigG": "conditioner.embedders.1.model.positional_embedding",
}
"""A tensor of each part that a single file must hold."""
OTHERS = {
    "lora_": "a LoRA, which is no model",
    "edm_mean": "Playground 2.5, which was trained with another objective (EDM)",
    "cond_stage_model.transformer.": "Stable Diffusion 1 (SD1)",
    "cond_stage_model.model.": "Stable Diffusion 2 (SD2)",
    "conditioner.embedders.0.model.": "the SDXL refiner, which only finishes pictures",
    "model.diffusion_model.joint_blocks.": "Stable Diffusion 3",
    "model.diffusion_model.double_blocks.": "FLUX.1",
    "double_blocks.": "FLUX.1",
}
"""Beginnings of names that give other models away."""


def stability_name(layer: str) -> str:
    """A layer of diffusers' UNet inside one of its transformers, by Stability AI's names.

    Each stage has three places there: two layers and a downsampler, after the input convolution; or three layers.
    """
    found = PLACE.match(layer)
    if found is None:
        return layer.replace("mid_block.attentions.0.", "middle_block.1.")
    side, stage, place, within = found.groups()
    number = 3 * int(stage) + int(place)
    return f"input_blocks.{number + 1}.1.{within}" if side == "down" else f"output_blocks.{number}.1.{within}"


class Sdxl(Family):
    """Stable Diffusion XL and its fine-tunes: a UNet of 2.6 billion parameters, told by two CLIPs."""

    name = "sdxl"
    title = "SDXL"
    variants: ClassVar = {
        "base": Variant(
            source="stabilityai/stable-diffusion-xl-base-1.0",
            pipeline="StableDiffusionXLPipeline",
            architecture="stable-diffusion-xl-v1-base/lora",
            size=size,
            summary="text to image; any fine-tune of it by --source, a folder or one file",
        )
    }
    recipes: ClassVar = {
        "seed": Recipe(guidance=7.0, steps=30, because="what lorakit's first users asked for"),
        "diffusers": Recipe(guidance=5.0, steps=50, because="the defaults of StableDiffusionXLPipeline"),
    }
    default_variant = "base"
    default_preset = "character"
    components = ("unet", "vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "scheduler")
    text_components = ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")
    # every linear layer of the UNet's transformers: the 722 of kohya's files
    lora_targets = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out")
    trainable_text = ("text_encoder", "text_encoder_2")
    text_targets = TEXT_TARGETS
    file_layers = (
        *(f"unet.{place}.{name}" for place in PLACES for name in LINEARS),
        *(f"{name}.text_model.encoder.layers.#.{layer}" for name in trainable_text for layer in TEXT_TARGETS),
    )
    kohya_names: ClassVar = {
        stability_name(f"{place}.{name}"): (f"{place}.{name}",) for place in PLACES for name in LINEARS
    }
    text_tokens = 77
    side_multiple = 16
    toy_resolution = 48
    toy_folder = TOY
    workflows = Path(__file__).parent / "workflows"
    layout = "kohya"
    base_model_version = "sdxl_base_v1-0"
    known_as: ClassVar = {
        "sdxl": "", "is_xl": "", "sdxl_train_network": "", "sd_xl_base_1.0": "base",
        "train_dreambooth_lora_sdxl": "", "train_text_to_image_lora_sdxl": "",
    }  # fmt: skip

    @hookimpl
    def scheduler_rules(self, request: Request) -> Iterator[Rule]:
        """Discrete diffusion only."""
        because = "SDXL was trained to predict noise, or a velocity, at 1000 discrete levels"
        yield only("scheduler.name", "ddpm", because=because)

    @hookimpl
    def quantization_rules(self, request: Request) -> Iterator[Rule]:
        """Full precision by preference."""
        because = "the UNet's 2.6 billion weights are 5.1 GB in bf16, and its convolutions are never quantized"
        yield prefer("quantization.name", "none", because=because)

    @hookimpl
    def sampling_rules(self, request: Request) -> Iterator[Rule]:
        """Classifier-free guidance."""
        yield prefer("sampling.guidance", 7.0, because="the usual strength for SDXL")
        yield prefer("sampling.steps", 30, because="the usual number for SDXL")

    @hookimpl
    def check_plan(self, plan: Plan) -> Iterator[Problem]:
        """Settings of the objective that are rarely meant together."""
        scheduler = plan.settings.scheduler
        if scheduler.prediction == "v_prediction" and scheduler.min_snr_gamma is not None:
            yield Problem(
                "with v_prediction, scheduler.min_snr_gamma lets the noisiest levels count almost nothing, and there "
                "such a model learns how bright a picture is: leave it out"
            )
        if (scheduler.noise_offset or 0) > 0.1:
            yield Problem(
                f"scheduler.noise_offset = {scheduler.noise_offset:g} is over 0.1: pictures become harsh and dark"
            )
        if plan.settings.quantization.name == "int2":
            yield Problem("int2 spares 1.3 GB over int4 and errs far more: SDXL hardly needs it")

    def text_encoder(self, plan: Plan, source: Source) -> SdxlTextEncoder:
        """The two CLIPs."""
        from lorakit_sdxl.model import SdxlTextEncoder

        return SdxlTextEncoder(source)

    def image_coder(self, plan: Plan, source: Source) -> SdxlImageCoder:
        """The VAE."""
        from lorakit_sdxl.model import SdxlImageCoder

        return SdxlImageCoder(source)

    def denoiser(self, plan: Plan, source: Source) -> SdxlDenoiser:
        """The UNet."""
        from lorakit_sdxl.model import SdxlDenoiser

        return SdxlDenoiser(source)

    def file_problem(self, held: Header) -> str:
        """Told by the names of Stability AI's layout, in which fine-tunes are published."""
        for start, what in OTHERS.items():
            if any(name.startswith(start) for name in held):
                return f"it is {what}"
        missing = [what for what, name in NEEDED.items() if name not in held]
        if missing:
            return f"it is no whole SDXL model: it lacks {', '.join(missing)}"
        if held[UNET].shape[1] == 9:
            return "it is an inpainting model, whose UNet is also shown what to keep"
        eight = sorted({one.dtype for one in held.values() if one.dtype.startswith("F8")})
        return f"its weights are already quantized ({eight[0]}): use the 16-bit file" if eight else ""

    def unpack(self, file: Path, config: Path, folder: Path) -> None:
        """By diffusers' own conversion."""
        from lorakit_sdxl.model import unpack

        unpack(file, config, folder)

    def exported_name(self, component: str, layer: str) -> str:
        """kohya's names: of Stability AI's blocks for the UNet, and `text_model` whatever transformers calls it."""
        if component != self.components[0]:
            which = self.trainable_text.index(component) + 1
            return f"lora_te{which}_text_model_{layer.removeprefix('text_model.')}".replace(".", "_")
        return f"lora_unet_{stability_name(layer)}".replace(".", "_")

    def toy(self, folder: Path, variant: str) -> None:
        """A 48-pixel toy of the real classes, shipped with the plugin (made by tests/toys/train_sdxl.py)."""
        toys.copy(TOY, folder, self.variants[variant], {})
