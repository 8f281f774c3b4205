"""What is true of Qwen-Image: its variants, its facts and its rules."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from lorakit import Family, FlowShift, Problem, Recipe, Rule, Variant, hookimpl, never, only, prefer, toys
from lorakit.captions import SUBJECT, CaptionAdvice
from lorakit_qwen.size import size

if TYPE_CHECKING:
    from lorakit import Plan, Request
    from lorakit.engine.parts import Source
    from lorakit_qwen.model import QwenDenoiser, QwenImageCoder, QwenTextEncoder

ROOM = Path(__file__).parent
TOY = ROOM / "toy"
IMAGE = Variant(
    source="Qwen/Qwen-Image",
    pipeline="QwenImagePipeline",
    architecture="Qwen-Image/lora",
    templates=("text-to-image",),
    # scheduler_config.json of Qwen/Qwen-Image
    flow_shift=FlowShift(base_tokens=256, base_shift=0.5, max_tokens=8192, max_shift=0.9, terminal=0.02),
    summary="text to image",
    size=size,
)
EDIT = replace(
    IMAGE,
    source="Qwen/Qwen-Image-Edit",
    pipeline="QwenImageEditPipeline",
    architecture="Qwen-Image-Edit/lora",
    templates=("edit", "text-to-image"),
    components=("processor",),
    references=1,
    text_reference_resolution=1024,
    summary="edits one picture",
)
PLUS = replace(
    EDIT,
    source="Qwen/Qwen-Image-Edit-2509",
    pipeline="QwenImageEditPlusPipeline",
    architecture="Qwen-Image-Edit-Plus/lora",
    references=3,
    text_reference_resolution=384,
    summary="edits none to three pictures",
)
NEWER = replace(PLUS, source="Qwen/Qwen-Image-Edit-2511", architecture="Qwen-Image-Edit-2511/lora")
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
FEED_FORWARD = ("net.0.proj", "net.2")
UNPATCHED = (
    "with reference pictures, diffusers up to 0.42.1 under transformers 5 draws other pictures than the previews: it "
    "leaves out mm_token_type_ids, and its text differs by 0.8 % on the toy (docs/references.md)"
)


class Qwen(Family):
    """Qwen-Image, which draws, and Qwen-Image-Edit, which edits: 20 billion parameters each."""

    name = "qwen"
    title = "Qwen-Image"
    variants: ClassVar = {"image": IMAGE, "edit": EDIT, "edit-2509": PLUS, "edit-2511": NEWER}
    recipes: ClassVar = {
        "seed": Recipe(guidance=3.5, steps=28, because="what lorakit's first users asked for"),
        "card": Recipe(guidance=4.0, steps=40, because="the model card of Qwen-Image-Edit-2509"),
        "comfyui": Recipe(guidance=2.5, steps=20, shift=3.0, because="ComfyUI's template image_qwen_image_edit_2509"),
    }
    default_variant = "image"
    default_preset = "character"
    components = ("transformer", "vae", "text_encoder", "tokenizer", "scheduler")
    lora_targets = (
        *(f"attn.{name}" for name in ATTENTION),
        *(f"{stream}_mlp.{name}" for stream in ("img", "txt") for name in FEED_FORWARD),
    )
    file_layers = (
        *(f"transformer.transformer_blocks.#.{name}" for name in (*lora_targets, "img_mod.1", "txt_mod.1")),
        *(f"transformer.{name}" for name in ("img_in", "txt_in", "norm_out.linear", "proj_out")),
    )
    comfyui_prefix = "diffusion_model"
    # a third of the weights; every token of the block is scaled by what they answer
    spared: ClassVar = {"int2": {"img_mod.1": "int4", "txt_mod.1": "int4"}}
    needs_recovery = ("int2", "int4")
    modulation = ("img_mod.1", "txt_mod.1")
    side_multiple = 16
    workflows = ROOM / "workflows"
    toy_resolution = 48
    toy_folder = TOY
    patch = 2
    base_model_version = "qwen_image"
    # `is_qwen` is read by no trainer, and stands in many files
    known_as: ClassVar = {
        "qwen_image": "image", "train_dreambooth_lora_qwen_image": "image", "model_version=original": "image",
        "qwen_image_edit": "edit", "qwen_image_edit_plus": "edit-2509", "qwen_image_edit_plus:2511": "edit-2511",
        "is_qwen": "", "qwen_image_train_network": "", "networks.lora_qwen_image": "",
    }  # fmt: skip

    caption_advice = CaptionAdvice(
        shortest=50,
        longest=200,
        order=(
            ("quality", ("photorealistic", "high quality", "best quality", "masterpiece", "realistic photo")),
            (SUBJECT, ()),
            ("camera", ("shot on", "canon", "nikon", "mm", "lens", "close-up", "wide angle")),
            ("lighting", ("lighting", "light", "sunlight", "backlit", "golden hour")),
        ),
        joined=(
            ("photorealistic", ("natural skin texture", "detailed skin", "8K")),
            ("realistic_body", ("detailed skin", "natural lighting")),
        ),
        because="that of the characters' guide: quality, subject, details, camera, lighting",
    )

    @hookimpl
    def scheduler_rules(self, request: Request) -> Iterator[Rule]:
        """Flow matching only."""
        yield only("scheduler.name", "flowmatch", because="Qwen-Image was trained to predict flow-matching velocity")

    @hookimpl
    def quantization_rules(self, request: Request) -> Iterator[Rule]:
        """int8 by preference."""
        because = "20.4 billion weights are 40.9 GB in bf16 and 20.5 GB in int8, at about 1 % error per layer"
        yield prefer("quantization.name", "int8", because=because)

    @hookimpl
    def text_encoder_rules(self, request: Request) -> Iterator[Rule]:
        """The text encoder is never trained, and the edit template is the one that ComfyUI's edit node uses."""
        because = "it is a 7-billion vision-language model whose embeddings are cached; training it destabilises"
        yield never("text_encoder.train", True, because=because)
        if request.settings.variant not in (None, "image"):
            because = "ComfyUI's TextEncodeQwenImageEditPlus uses it even without a reference picture"
            yield prefer("text_encoder.template", "edit", because=because)

    @hookimpl
    def sampling_rules(self, request: Request) -> Iterator[Rule]:
        """True classifier-free guidance, as the model card has it."""
        yield prefer("sampling.guidance", 4.0, because="true_cfg_scale of the model card")
        yield prefer("sampling.steps", 40, because="steps of the model card")

    @hookimpl
    def check_plan(self, plan: Plan) -> Iterator[Problem]:
        """What an unpatched diffusers draws otherwise, and what a character is easily spoilt by."""
        settings, sampling = plan.settings, plan.settings.sampling
        if plan.arithmetic.references or any(sampling.references):
            yield Problem(UNPATCHED)
        if not (settings.preset or "").rpartition("/")[2].startswith("character"):
            return
        if (rate := settings.optimizer.learning_rate) > 5e-4:
            yield Problem(f"optimizer.learning_rate = {rate:g} overfits and fries a character; never over 5e-4")
        if (rank := settings.lora.rank) > 64:
            yield Problem(f"lora.rank = {rank} is over 64: it will learn a character's backgrounds and lighting too")
        if not 2.5 <= sampling.guidance <= 4:
            yield Problem(f"sampling.guidance = {sampling.guidance:g}: 3 to 4 shows characters best, 2.5 at least")

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
        """A trained 48-pixel toy of the real classes, shipped with the plugin (made by tests/toys/train_qwen.py)."""
        toys.copy(TOY, folder, self.variants[variant], {"processor": ("transformers", "Qwen2VLProcessor")})
        if variant == "edit-2511":  # whose transformer modulates references as at noise level 0
            toys.rewrite(folder / "transformer" / "config.json", {"zero_cond_t": True})
