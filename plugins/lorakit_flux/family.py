"""What is true of FLUX.1: its variants, its facts and its rules."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from lorakit import Family, FlowShift, Problem, Recipe, Rule, Variant, hookimpl, only, prefer
from lorakit.buckets import Shape
from lorakit_flux.size import size

if TYPE_CHECKING:
    from lorakit import Plan, Request
    from lorakit.engine.parts import Source
    from lorakit_flux.model import FluxDenoiser, FluxImageCoder, FluxTextEncoder

# scheduler_config.json of FLUX.1-dev and FLUX.1-Kontext-dev; that of schnell shifts nothing
SHIFT = FlowShift(base_tokens=256, base_shift=0.5, max_tokens=4096, max_shift=1.15)
UNSHIFTED = FlowShift(base_shift=0.0, max_shift=0.0)
GUIDED: dict[str, Any] = {"guidance": "embedded", "flow_shift": SHIFT, "size": size}
# PREFERRED_KONTEXT_RESOLUTIONS of diffusers: the (width, height) that Kontext was trained to see
LONGER, SHORTER = (1024, 1104, 1184, 1248, 1328, 1392, 1456, 1504, 1568), (1024, 944, 880, 832, 800, 752, 720, 688, 672)
PREFERRED = sorted({*zip(LONGER, SHORTER, strict=True), *zip(SHORTER, LONGER, strict=True)})
DOUBLE = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
TEXT_TARGETS = ("q_proj", "k_proj", "v_proj", "out_proj")
MODULATION = ("norm1.linear", "norm1_context.linear", "norm.linear")
DOUBLES, SINGLES = "transformer_blocks.#.", "single_transformer_blocks.#."
STREAMS = (("img", "", DOUBLE[:4], "ff"), ("txt", "_context", DOUBLE[4:], "ff_context"))
EDGES = {"img_in": ("x_embedder",), "txt_in": ("context_embedder",), "final_layer.linear": ("proj_out",)}
# the names of Black Forest Labs, in which query, key and value are one layer
KOHYA: dict[str, tuple[str, ...]] = {
    f"double_blocks.#.{stream}_{own}": tuple(f"{DOUBLES}{name}" for name in layers)
    for stream, context, attention, feed in STREAMS
    for own, layers in {
        "attn.qkv": [f"attn.{name}" for name in attention[:3]],
        "attn.proj": [f"attn.{attention[3]}"],
        "mlp.0": [f"{feed}.net.0.proj"],
        "mlp.2": [f"{feed}.net.2"],
        "mod.lin": [f"norm1{context}.linear"],
    }.items()
} | {
    "single_blocks.#.linear1": tuple(
        f"{SINGLES}{name}" for name in ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")
    ),
    "single_blocks.#.linear2": (f"{SINGLES}proj_out",),
    "single_blocks.#.modulation.lin": (f"{SINGLES}norm.linear",),
    **EDGES,
}
UNDONE = (
    "FLUX.1-schnell is distilled to draw in 1 to 4 steps, and training with plain flow matching undoes that little by "
    "little: keep the run short, watch the previews at 4 steps, or teach --variant dev"
)
EXPERIMENTAL = (
    "text_encoder.train = true is an experiment with FLUX.1: CLIP-L alone is trained, which only tells the model about "
    "a caption as a whole, and both text encoders stay in memory for the whole run"
)
BLIND = "none of the pictures has a reference, so Kontext, which edits, is taught to draw from text alone"


class Flux(Family):
    """FLUX.1: 12 billion parameters, distilled from a larger model."""

    name = "flux"
    title = "FLUX.1"
    variants: ClassVar = {
        "dev": Variant(
            source="black-forest-labs/FLUX.1-dev",
            pipeline="FluxPipeline",
            architecture="flux-1-dev/lora",
            summary="text to image, told how strongly to follow the text",
            **GUIDED,
        ),
        "schnell": Variant(
            source="black-forest-labs/FLUX.1-schnell",
            pipeline="FluxPipeline",
            architecture="flux-1-schnell/lora",
            guidance="none",
            call={"max_sequence_length": 256},
            flow_shift=UNSHIFTED,
            size=size,
            summary="text to image in 1 to 4 steps",
        ),
        "kontext": Variant(
            source="black-forest-labs/FLUX.1-Kontext-dev",
            pipeline="FluxKontextPipeline",
            architecture="flux-1-kontext/lora",
            references=1,
            summary="edits one picture, or draws without one",
            **GUIDED,
        ),
    }
    recipes: ClassVar = {
        "seed": Recipe(guidance=3.5, steps=28, because="what lorakit's first users asked for"),
        "card": Recipe(guidance=3.5, steps=50, because="the model card of FLUX.1-dev"),
        "kontext": Recipe(guidance=2.5, steps=28, because="the model card of FLUX.1-Kontext-dev"),
        "comfyui": Recipe(
            guidance=3.5, steps=20, shift=3.158, because="ComfyUI shifts FLUX.1 by exp(1.15) at any size"
        ),
    }
    default_variant = "dev"
    default_preset = "character"
    components = ("transformer", "vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", "scheduler")
    text_components = ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")
    # InvokeAI knows a file as FLUX.1's by q, k and v of both kinds of blocks
    lora_targets = (
        *(f"attn.{name}" for name in DOUBLE),
        *(f"{stream}.{name}" for stream in ("ff", "ff_context") for name in ("net.0.proj", "net.2")),
        *("proj_mlp", "proj_out"),
    )
    trainable_text = ("text_encoder",)
    text_targets = TEXT_TARGETS
    file_layers = (
        *(f"transformer.{layer}" for layers in KOHYA.values() for layer in layers),
        *(f"text_encoder.text_model.encoder.layers.#.self_attn.{name}" for name in TEXT_TARGETS),
        *(f"text_encoder.text_model.encoder.layers.#.mlp.{name}" for name in ("fc1", "fc2")),
    )
    kohya_names = KOHYA
    # a quarter of the weights; every token of the block is scaled by what they answer
    spared: ClassVar = {"int2": dict.fromkeys(MODULATION, "int4")}
    needs_recovery = ("int2",)
    modulation = MODULATION
    modulated_by_text = True
    side_multiple = 16
    toy_resolution = 48
    toy_folder = Path(__file__).parent / "toy"
    workflows = Path(__file__).parent / "workflows"
    patch = 2
    base_model_version = "flux1"
    known_as: ClassVar = {
        "flux": "dev", "is_flux": "", "flux_kontext": "kontext", "flux_schnell": "schnell",
        "train_dreambooth_lora_flux": "dev", "train_dreambooth_lora_flux_kontext": "kontext",
        "flux_train_network": "", "networks.lora_flux": "", "flux_kontext_train_network": "kontext",
    }  # fmt: skip

    def reference_shape(self, size: Shape, resolution: int) -> Shape:
        """The preferred shape whose sides are in the likest proportion, brought from 1024² to the area of resolution².

        As FluxKontextPipeline chooses it, which first cuts the picture's sides to multiples of 16.
        """
        multiple = self.side_multiple
        wide, high = (max(multiple, side // multiple * multiple) for side in (size.width, size.height))
        _, *sides = min((abs(wide / high - width / height), width, height) for width, height in PREFERRED)
        return Shape(*(max(multiple, round(side * resolution / 1024 / multiple) * multiple) for side in sides))

    def exported_name(self, component: str, layer: str) -> str:
        """CLIP's layers lie in `text_model`, as every reader of files has it, and transformers before version 5."""
        if component == "text_encoder" and not layer.startswith("text_model."):
            layer = f"text_model.{layer}"
        return super().exported_name(component, layer)

    @hookimpl
    def scheduler_rules(self, request: Request) -> Iterator[Rule]:
        """Flow matching only."""
        yield only("scheduler.name", "flowmatch", because="FLUX.1 was trained to predict flow-matching velocity")

    @hookimpl
    def quantization_rules(self, request: Request) -> Iterator[Rule]:
        """int8 by preference."""
        because = "11.9 billion weights are 23.8 GB in bf16 and 12.0 GB in int8, at about 1 % error per layer"
        yield prefer("quantization.name", "int8", because=because)

    @hookimpl
    def text_encoder_rules(self, request: Request) -> Iterator[Rule]:
        """CLIP-L may be trained, T5 never."""
        because = "T5, which reads the caption word by word, is never trained; CLIP-L alone may be, as an experiment"
        yield prefer("text_encoder.train", False, because=because)

    @hookimpl
    def sampling_rules(self, request: Request) -> Iterator[Rule]:
        """Guidance that the model is told, as the model cards have it."""
        variant = request.settings.variant or self.default_variant
        if variant == "schnell":
            yield only("sampling.guidance", 1.0, because="FLUX.1-schnell draws without guidance")
            yield prefer("sampling.steps", 4, because="the most that FLUX.1-schnell was distilled for")
        elif variant == "kontext":
            yield prefer("sampling.guidance", 2.5, because="guidance_scale of the model card of FLUX.1-Kontext-dev")
        else:
            yield prefer("sampling.guidance", 3.5, because="guidance_scale of the model card of FLUX.1-dev")
            yield prefer("sampling.steps", 50, because="steps of the model card of FLUX.1-dev")

    @hookimpl
    def check_plan(self, plan: Plan) -> Iterator[Problem]:
        """What is allowed, and must be known."""
        settings = plan.settings
        if settings.variant == "schnell":
            yield Problem(UNDONE)
        if settings.variant == "kontext" and settings.data and not plan.arithmetic.references:
            yield Problem(BLIND)
        if settings.text_encoder.train:
            yield Problem(EXPERIMENTAL)

    def text_encoder(self, plan: Plan, source: Source) -> FluxTextEncoder:
        """T5 and CLIP-L."""
        from lorakit_flux.model import FluxTextEncoder

        return FluxTextEncoder(plan, source)

    def image_coder(self, plan: Plan, source: Source) -> FluxImageCoder:
        """The FLUX.1 VAE."""
        from lorakit_flux.model import FluxImageCoder

        return FluxImageCoder(source)

    def denoiser(self, plan: Plan, source: Source) -> FluxDenoiser:
        """The FLUX.1 transformer."""
        from lorakit_flux.model import FluxDenoiser

        return FluxDenoiser(source, self.variants[plan.settings.variant].guidance == "embedded")

    def toy(self, folder: Path, variant: str) -> None:
        """A 48-pixel toy of the real classes, shipped with the plugin (made by tests/toys/train_flux.py)."""
        from lorakit_flux.toys import write

        write(self.toy_folder, folder, self.variants[variant])
