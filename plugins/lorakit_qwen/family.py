"""What is true of Qwen-Image: its variants, its facts and its rules."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from lorakit import Family, FlowShift, Rule, Variant, hookimpl, never, only, prefer

if TYPE_CHECKING:
    from lorakit import Plan, Request
    from lorakit.engine.parts import Source
    from lorakit_qwen.model import QwenDenoiser, QwenImageCoder, QwenTextEncoder

TOY = Path(__file__).parent / "toy"


class Qwen(Family):
    """Qwen-Image (text to image) and Qwen-Image-Edit-2509, 20 billion parameters each."""

    name = "qwen"
    title = "Qwen-Image"
    variants: ClassVar = {
        "image": Variant(
            source="Qwen/Qwen-Image",
            pipeline="QwenImagePipeline",
            architecture="Qwen-Image/lora",
            templates=("text-to-image",),
            summary="text to image",
        ),
        "edit-2509": Variant(
            source="Qwen/Qwen-Image-Edit-2509",
            pipeline="QwenImageEditPlusPipeline",
            architecture="Qwen-Image-Edit-Plus/lora",
            templates=("edit", "text-to-image"),
            components=("processor",),
            summary="editing model, taught here without reference pictures",
        ),
    }
    default_variant = "image"
    default_preset = "character"
    components = ("transformer", "vae", "text_encoder", "tokenizer", "scheduler")
    lora_targets = (
        "attn.to_q",
        "attn.to_k",
        "attn.to_v",
        "attn.to_out.0",
        "attn.add_q_proj",
        "attn.add_k_proj",
        "attn.add_v_proj",
        "attn.to_add_out",
        "img_mlp.net.0.proj",
        "img_mlp.net.2",
        "txt_mlp.net.0.proj",
        "txt_mlp.net.2",
    )
    # a third of the weights; every token of the block is scaled by what they answer
    spared: ClassVar = {"int2": {"img_mod.1": "int4", "txt_mod.1": "int4"}}
    side_multiple = 16
    patch = 2
    base_model_version = "qwen_image"
    # scheduler_config.json of Qwen/Qwen-Image
    flow_shift = FlowShift(base_tokens=256, base_shift=0.5, max_tokens=8192, max_shift=0.9, terminal=0.02)

    @hookimpl
    def scheduler_rules(self, request: Request) -> Iterator[Rule]:
        """Flow matching only."""
        yield only("scheduler.name", "flowmatch", because="Qwen-Image was trained to predict flow-matching velocity")

    @hookimpl
    def quantization_rules(self, request: Request) -> Iterator[Rule]:
        """int8 by preference; fewer bits only with an accuracy recovery adapter, or where the user says otherwise."""
        because = "20.4 billion weights are 40.9 GB in bf16 and 20.5 GB in int8, at about 1 % error per layer"
        yield prefer("quantization.name", "int8", because=because)
        settings = request.settings.quantization
        if settings.recovery is None and not settings.uncorrected:
            because = (
                "a base in so few bits needs an accuracy recovery adapter: make one with `lorakit recover --family "
                f"{self.name} --quantization NAME -o FILE` and name it in quantization.recovery, or say "
                "quantization.uncorrected = true"
            )
            yield never("quantization.name", "int4", "int2", because=because)

    @hookimpl
    def text_encoder_rules(self, request: Request) -> Iterator[Rule]:
        """The text encoder is never trained, and the edit template is the one that ComfyUI's edit node uses."""
        because = "it is a 7-billion vision-language model whose embeddings are cached; training it destabilises"
        yield never("text_encoder.train", True, because=because)
        if request.settings.variant == "edit-2509":
            because = "ComfyUI's TextEncodeQwenImageEditPlus uses it even without a reference picture"
            yield prefer("text_encoder.template", "edit", because=because)

    @hookimpl
    def sampling_rules(self, request: Request) -> Iterator[Rule]:
        """True classifier-free guidance, as the model card has it."""
        yield prefer("sampling.guidance", 4.0, because="true_cfg_scale of the model card")
        yield prefer("sampling.steps", 40, because="steps of the model card")

    def text_encoder(self, plan: Plan, source: Source) -> QwenTextEncoder:
        """Qwen2.5-VL with the prompt template of the plan."""
        from lorakit_qwen.model import QwenTextEncoder

        return QwenTextEncoder(plan, source)

    def image_coder(self, plan: Plan, source: Source) -> QwenImageCoder:
        """The Qwen-Image VAE on single frames."""
        from lorakit_qwen.model import QwenImageCoder

        return QwenImageCoder(source)

    def denoiser(self, plan: Plan, source: Source) -> QwenDenoiser:
        """The Qwen-Image transformer."""
        from lorakit_qwen.model import QwenDenoiser

        return QwenDenoiser(source)

    def toy(self, folder: Path, variant: str) -> None:
        """A trained 64-pixel toy of the real classes, shipped with the plugin (made by tests/toys/train_qwen.py)."""
        shutil.copytree(TOY, folder, dirs_exist_ok=True)
        about = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
        about["_class_name"] = self.variants[variant].pipeline
        if variant != "image":
            about["processor"] = ["transformers", "Qwen2VLProcessor"]
        (folder / "model_index.json").write_text(json.dumps(about, indent=1), encoding="utf-8")
