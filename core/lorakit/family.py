"""What a model family gives: facts and rules here, without torch; the three working parts when asked for."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from lorakit.buckets import Shape
from lorakit.captions import CaptionAdvice
from lorakit.dataset import Sizing
from lorakit.single_file import Header
from lorakit.sizes import Sizer

if TYPE_CHECKING:
    from lorakit.engine.parts import Denoiser, ImageCoder, Source, TextEncoder
    from lorakit.plan import Plan
    from lorakit.planned import Planned


Layout = Literal["peft", "kohya"]
"""`lora_A` and `lora_B` with the scale folded in, as peft has them; or `lora_down`, `lora_up` and `alpha`, as kohya."""
Guidance = Literal["true", "embedded", "none"]
"""How a model is guided: by a second, negative prediction; by a number that it is told; or not at all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowShift:
    """How far a flow-matching model moves its noise levels up as pictures grow.

    The shift is exp(mu), mu being linear in the number of image tokens between the two published points; `terminal`
    is the level that the last sampling step is stretched to. Source: the scheduler_config.json of each model, as
    diffusers' `calculate_shift` reads it. `lowest` is the last of the evenly spaced levels that sampling shifts, None
    for one over the number of steps.
    """

    base_tokens: int = 256
    base_shift: float = 0.5
    max_tokens: int = 4096
    max_shift: float = 1.15
    terminal: float | None = None
    lowest: float | None = None

    @staticmethod
    def fixed(shift: float) -> FlowShift:
        """One shift for every size: a scheduler_config.json with `shift` and without `use_dynamic_shifting`.

        diffusers' pipelines then take the levels of FlowMatchEulerDiscreteScheduler itself, which begins with 1000 of
        them, shifts those, and spaces steps evenly down to the last.
        """
        last = shift * 0.001 / (1 + (shift - 1) * 0.001)
        return FlowShift(base_shift=math.log(shift), max_shift=math.log(shift), lowest=last)

    def at(self, tokens: int) -> float:
        """The shift for a picture of `tokens` image tokens."""
        slope = (self.max_shift - self.base_shift) / (self.max_tokens - self.base_tokens)
        return math.exp(self.base_shift + slope * (tokens - self.base_tokens))


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One published model of a family.

    `source` is its hub repository; `resolution` its native side in pixels (of a square of the same area);
    `architecture` what the exported file says of itself (`modelspec.architecture`); `templates` are the prompt
    templates that it understands, the usual one first; `pipeline` names the diffusers class that draws with it, and
    `call` is what that is called with besides prompt, size, steps, guidance and noise, to draw as previews do;
    `components` are sub-folders of its repository, over the family's, that its text depends on. `references` is the
    most reference pictures that a sample may have, `reference_resolution` the side in pixels of a square of the area
    that they are brought to, and `text_reference_resolution` that at which the text encoder sees them, None where it
    does not. `flow_shift` is None for models that do not match flows. `size` answers what the model weighs and costs,
    by its configuration; without it no plan can tell.
    """

    source: str
    pipeline: str
    architecture: str
    resolution: int = 1024
    templates: tuple[str, ...] = ("plain",)
    call: Mapping[str, Any] = field(default_factory=dict, hash=False)
    components: tuple[str, ...] = ()
    references: int = 0
    reference_resolution: int = 1024
    text_reference_resolution: int | None = None
    guidance: Guidance = "true"
    flow_shift: FlowShift | None = None
    summary: str = ""
    size: Sizer | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Sampling settings that belong together, as somebody publishes them; `shift` None is the family's formula."""

    guidance: float
    steps: int
    shift: float | None = None
    because: str


class Family(ABC):
    """A family of models that one plugin knows how to teach.

    The class attributes are facts; methods marked with `lorakit.hookimpl` are its rules, heard only in runs of this
    family. The three parts are made once each, in the order text encoder, image coder, denoiser; core decides what
    lives on which device and when.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    variants: ClassVar[Mapping[str, Variant]]
    default_variant: ClassVar[str]
    default_preset: ClassVar[str | None] = None
    components: ClassVar[tuple[str, ...]]
    """Sub-folders that a model folder of this family must have."""
    text_components: ClassVar[tuple[str, ...]] = ("text_encoder", "tokenizer")
    """Sub-folders that cached text depends on."""
    image_components: ClassVar[tuple[str, ...]] = ("vae",)
    """Sub-folders that cached latents depend on."""
    encoding_version: ClassVar[int] = 1
    """Raised whenever the encoders' code gives other values, so that nothing stale is served from the cache."""
    lora_targets: ClassVar[tuple[str, ...]]
    """Names of the linear layers, inside the repeated blocks, that an adapter attaches to by default."""
    side_multiple: ClassVar[int]
    """Sides of training pictures are multiples of this, in pixels."""
    base_model_version: ClassVar[str]
    """What `ss_base_model_version` says in exported files."""
    layout: ClassVar[Layout] = "peft"
    """How exported files name their tensors."""
    file_layers: ClassVar[tuple[str, ...]] = ()
    """The layers that LoRA files of anybody may hold, after their component, in diffusers' names; `#` is a number."""
    kohya_names: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    """What kohya's trainers call layers of the denoiser where it is not diffusers' name; one that fuses several layers
    has them in the order of its rows. `#` is a number."""
    comfyui_prefix: ClassVar[str] = ""
    """What stands before diffusers' names in files that ComfyUI itself writes; empty where it writes other names."""
    trainable_text: ClassVar[tuple[str, ...]] = ()
    """Text encoders that may be trained, by their sub-folder, which is also what the encoder's module calls them."""
    text_targets: ClassVar[tuple[str, ...]] = ()
    """Names of the linear layers that an adapter attaches to in a trained text encoder."""
    recipes: ClassVar[Mapping[str, Recipe]] = {}
    """Sampling settings to choose from, by name."""
    patch: ClassVar[int] = 1
    """Side, in latent pixels, of the square that becomes one token."""
    text_tokens: ClassVar[int | None] = None
    """Tokens of a caption that the text encoder reads, where that is few; the rest is cut."""
    caption_advice: ClassVar[CaptionAdvice | None] = None
    """How captions and prompts are best written, if the family has an opinion."""
    spared: ClassVar[Mapping[str, Mapping[str, str]]] = {}
    """By quantizer, the layers inside the blocks that it leaves to a finer one: the ends of their names, and the finer
    quantizer's name (`none` keeps full precision). Layers outside the blocks are never quantized."""
    known_as: ClassVar[Mapping[str, str]] = {}
    """What other trainers call this family: architectures, flags, scripts, each with the variant that it means, or an
    empty text where it means any. `Variant.source` need not be repeated."""
    needs_recovery: ClassVar[tuple[str, ...]] = ()
    """Quantizers that are refused without an accuracy recovery adapter, unless the user says otherwise."""
    modulation: ClassVar[tuple[str, ...]] = ()
    """Ends of the names of linear layers, inside the blocks, that see nothing but the noise level and pooled text."""
    modulated_by_text: ClassVar[bool] = False
    """Whether those layers see pooled text too."""
    workflows: ClassVar[Path | None] = None
    """Folder of ComfyUI workflows, the templates that `lorakit.workflow` fills in for each run."""
    toy_resolution: ClassVar[int] = 64
    """Side in pixels that the toy model was made for."""
    toy_folder: ClassVar[Path | None] = None
    """A shipped model folder whose config.json files tell the toy's sizes, where there is one."""

    def sizing(self, variant: str, resolution: int | None, text_resolution: int | None) -> Sizing:
        """How pictures of a run are brought to size, references at the areas of these resolutions."""
        about = self.variants[variant]

        def at(side: int) -> Callable[[Shape], Shape]:
            return lambda size: self.reference_shape(size, side)

        text = at(text_resolution) if about.text_reference_resolution and text_resolution else None
        return Sizing(self.side_multiple, about.references, at(resolution or about.reference_resolution), text)

    def planned_sizing(self, settings: Planned) -> Sizing:
        """The sizing of a planned run."""
        text = settings.text_encoder.reference_resolution
        return self.sizing(settings.variant, settings.train.reference_resolution, text)

    def reference_shape(self, size: Shape, resolution: int) -> Shape:
        """The shape that a reference picture of `size` is brought to: the area of resolution², sides by 32.

        As `calculate_dimensions` of diffusers' editing pipelines, whose sides are rounded, not cut.
        """
        width = math.sqrt(resolution * resolution * (size.width / size.height))
        height = width / (size.width / size.height)
        return Shape(max(32, round(width / 32) * 32), max(32, round(height / 32) * 32))

    def file_problem(self, held: Header) -> str:
        """Why a single file that holds these tensors is not a model of this family; empty where it is one."""
        return f"{self.title} is read from folders in diffusers layout, not from single files"

    def unpack(self, file: Path, config: Path, folder: Path) -> None:
        """Write a single-file model as `folder` in diffusers layout, with the configuration of the folder `config`."""
        raise NotImplementedError(f"{self.title} has no single files")

    def exported_name(self, component: str, layer: str) -> str:
        """What exported files call a layer of a component, before the names of its halves."""
        return f"{component}.{layer}"

    @abstractmethod
    def text_encoder(self, plan: Plan, source: Source) -> TextEncoder:
        """The part that turns captions into text conditioning; large, and freed after caching."""

    @abstractmethod
    def image_coder(self, plan: Plan, source: Source) -> ImageCoder:
        """The part that turns pictures into unit-scaled latents and back."""

    @abstractmethod
    def denoiser(self, plan: Plan, source: Source) -> Denoiser:
        """The part that is taught."""

    @abstractmethod
    def toy(self, folder: Path, variant: str) -> None:
        """Write a small model folder of the real classes: what the demo and the contract test train on."""
