"""Every setting of a run, with its type, range and one sentence on what it does.

`Settings` is what a person writes: None means undecided. `lorakit.planned` is the same with everything decided.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, JsonValue, model_validator

from lorakit.outcomes import Sampling, Save, Validation
from lorakit.sections import Name, Section, Target


class Model(Section):
    """Which weights to teach."""

    source: Annotated[str, Field(min_length=1)] | None = Field(
        None,
        description="Hub repository, local model folder, one safetensors file where the family reads such, or `toy` "
        "for the family's small built-in model. Default: the variant's published repository.",
    )
    config: Annotated[str, Field(min_length=1)] | None = Field(
        None,
        description="Model folder, or hub repository, with the configuration and tokenizers of a `source` that is one "
        "file. Default: the variant's published repository.",
    )
    device: Literal["auto", "cpu", "cuda", "mps"] = Field(
        "auto", description="Where to train; `auto` takes a GPU where there is one."
    )


class Data(Section):
    """One folder of pictures, or one list of them."""

    folder: Annotated[str, Field(min_length=1)] | None = Field(
        None,
        description="Folder of pictures; `40_name` folders, or sub-folders so named, are shown 40 times per epoch.",
    )
    list: Annotated[str, Field(min_length=1)] | None = Field(
        None,
        description="JSON-lines file instead of a folder; each line names `target`, and may name `caption` and "
        "`references`, with paths from the file's own folder.",
    )
    references: Annotated[str, Field(min_length=1)] | None = Field(
        None,
        description="Folder of reference pictures for an editing model, matched by name: `a.png`, or `a_1.png` and "
        "`a_2.png` for several.",
    )
    repeats: int | None = Field(
        None, ge=1, le=100_000, description="Times that each picture is shown per epoch, over the folder's own name."
    )
    trigger: Annotated[str, Field(max_length=200)] | None = Field(
        None,
        description='Trigger word of this folder; `""` for none, as with pictures of what the model knows already. '
        "Default: the run's.",
    )
    captions: Annotated[str, Field(pattern=r"^[A-Za-z0-9]+$")] = Field(
        "txt", description="Extension of the caption files beside the pictures, or `none` for the trigger alone."
    )
    resolution: int | None = Field(
        None, ge=16, le=8192, description="Side in pixels of a square of the training area; default train.resolution."
    )

    @model_validator(mode="after")
    def _one_place(self) -> Data:
        if (self.folder is None) == (self.list is None):
            raise ValueError("name either folder or list")
        if self.list is not None and self.references is not None:
            raise ValueError("a list names its references itself; leave references out")
        return self


class Lora(Section):
    """The adapter."""

    rank: int = Field(16, ge=1, le=1024, description="Inner dimension of the adapter.")
    alpha: float | None = Field(
        None, gt=0, le=4096, description="The adapter's effect is scaled by alpha / rank. Default: the rank."
    )
    targets: tuple[Target, ...] | None = Field(
        None,
        min_length=1,
        description="Names of the linear layers to adapt, as they end inside a block (`attn.to_q`). "
        "Default: the family's.",
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="Share of the adapter's inputs that are dropped.")


class Optimizer(Section):
    """How gradients become updates."""

    name: str = Field("adamw", description="Optimizer, by its registered name.")
    learning_rate: float = Field(1e-4, gt=0, le=1, description="Peak learning rate.")
    weight_decay: float = Field(1e-4, ge=0, lt=1, description="Decoupled weight decay.")
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = Field(
        (0.9, 0.999), description="Decay rates of the two moments."
    )
    epsilon: float = Field(1e-8, gt=0, lt=1, description="Added to the root of the second moment.")
    schedule: Literal["constant", "linear", "cosine"] = Field(
        "constant", description="Course of the learning rate after warm-up; linear and cosine end at 0."
    )
    warmup: int = Field(0, ge=0, description="Updates over which the learning rate rises from 0.")


class Train(Section):
    """How long, how many at once, and in which precision."""

    updates: int | None = Field(None, ge=1, description="Optimizer updates. Give this or epochs.")
    epochs: float | None = Field(
        None,
        gt=0,
        le=100_000,
        description="Times that every picture, with its repeats, is shown. Give this or updates.",
    )
    resolution: int | None = Field(
        None, ge=16, le=8192, description="Side in pixels of a square of the training area. Default: the variant's."
    )
    reference_resolution: int | None = Field(
        None,
        ge=16,
        le=8192,
        description="Side in pixels of a square of the area that reference pictures are brought to. "
        "Default: the variant's.",
    )
    gpus: int | None = Field(
        None,
        ge=1,
        le=4096,
        description="Processes that train together, one for each GPU. Default: as many as torchrun started, else 1.",
    )
    sharding: Literal["replicated", "sharded"] | None = Field(
        None,
        description="How several GPUs hold the frozen base: all of it on each, or for a base that fits no card a part "
        "of each block, gathered whenever that block computes. Default: `replicated`, unless the card is known and the "
        "base does not fit it.",
    )
    batch_size: int = Field(1, ge=1, le=4096, description="Pictures per pass through the model, on each GPU.")
    accumulation: int = Field(1, ge=1, le=4096, description="Passes whose gradients are averaged into one update.")
    group_by_length: bool = Field(
        False,
        description="Put pictures whose captions are about as long into one batch: less padding where a model reads "
        "texts at their own length, and batches that are less of chance.",
    )
    precision: Literal["bf16", "fp32"] = Field(
        "bf16", description="Number format of the frozen base and its activations; adapter weights are always fp32."
    )
    guidance: float | None = Field(
        None,
        ge=0,
        le=100,
        description="Guidance that a model with embedded guidance is told of in training. Default: 1.",
    )
    caption_dropout: float = Field(
        0.05, ge=0, le=1, description="Share of passes that see the empty caption instead of the picture's own."
    )
    max_grad_norm: float = Field(1.0, ge=0, description="Gradients longer than this are shortened to it; 0 never.")
    gradient_checkpointing: bool = Field(
        True, description="Recompute activations in the backward pass instead of keeping them: slower, far less memory."
    )
    timeout: int | None = Field(
        None,
        ge=5,
        le=604_800,
        description="Seconds without a sign of life from one of several processes after which the others give it up, "
        "and stop (only with several GPUs). Default: 1800.",
    )
    ema: float = Field(
        0.0, ge=0, lt=1, description="Decay of a running average of the adapter, which is then what is saved; 0 is off."
    )


class Scheduler(Section):
    """The training objective and how noise levels are drawn."""

    name: str | None = Field(None, description="Training objective, by its registered name.")
    timesteps: str | None = Field(None, description="How noise levels are drawn: one of the objective's ways.")
    mean: float | None = Field(None, ge=-10, le=10, description="Mean of logit-normal levels (only with it).")
    std: float | None = Field(None, gt=0, le=10, description="Spread of logit-normal levels (only with it).")
    shift: float | None = Field(
        None, gt=0, le=100, description="Factor of shifted levels (only with `shift`). Default: the family's formula."
    )
    prediction: Literal["epsilon", "v_prediction"] | None = Field(
        None,
        description="What the model predicts (only `ddpm`); must be what its own scheduler says. Default: that.",
    )
    min_snr_gamma: float | None = Field(
        None, gt=0, le=100, description="Bound on the signal-to-noise ratio that a loss counts with (only `ddpm`)."
    )
    noise_offset: float | None = Field(
        None, ge=0, le=1, description="Share of noise that is the same for a whole channel (only `ddpm`)."
    )

    @model_validator(mode="after")
    def _only_what_is_used(self) -> Scheduler:
        if self.timesteps is not None:
            if self.timesteps != "logit-normal" and (self.mean is not None or self.std is not None):
                raise ValueError(f"mean and std have no effect with timesteps = '{self.timesteps}'; leave them out")
            if self.timesteps != "shift" and self.shift is not None:
                raise ValueError(f"shift has no effect with timesteps = '{self.timesteps}'; leave it out")
        return self


class Quantization(Section):
    """How the frozen base is held."""

    name: str | None = Field(None, description="Quantizer, by its registered name; `none` keeps full precision.")
    recovery: Annotated[str, Field(min_length=1)] | None = Field(
        None,
        description="Accuracy recovery adapter, a safetensors file that `lorakit recover` made or a published one: "
        "corrects the quantized layers in training and previews, and is never trained nor exported.",
    )
    uncorrected: bool = Field(
        False, description="Allow a quantization that the family refuses without an accuracy recovery adapter."
    )
    cache: bool = Field(
        False,
        description="Keep the quantized base beside the runs and reuse it: a faster start, for as much disk as it "
        "takes in memory.",
    )


class TextEncoder(Section):
    """What happens to the text encoder."""

    train: bool | None = Field(None, description="Teach the text encoder too, where the family allows it.")
    learning_rate: float | None = Field(
        None, gt=0, le=1, description="Peak learning rate of a trained text encoder. Default: half of the optimizer's."
    )
    cache: bool | None = Field(
        None,
        description="Encode every text once and free the encoder; without it, each pass encodes its own, which a "
        "trained encoder needs.",
    )
    device: Literal["auto", "cpu"] = Field(
        "auto",
        description="Where texts are encoded: `auto` is where training is; `cpu` takes longer, for cards that the text "
        "encoder does not fit.",
    )
    template: str | None = Field(
        None, description="Prompt template, one of the variant's, where there is no reference picture."
    )
    reference_resolution: int | None = Field(
        None,
        ge=16,
        le=8192,
        description="Side in pixels of a square of the area at which the text encoder sees reference pictures. "
        "Default: the variant's.",
    )


class Speed(Section):
    """Ways to be faster or smaller that change no result beyond rounding."""

    modulation: Literal["table", "layers"] | None = Field(
        None,
        description="`table` works out ahead what the model's modulation layers answer and keeps their weights off the "
        "GPU; `layers` runs them in every pass.",
    )
    offload: int = Field(
        0,
        ge=0,
        le=1000,
        description="How many of the model's blocks, at most all, wait in host memory and are brought to the GPU one "
        "ahead; for small cards, where it costs time.",
    )
    adapter: Literal["fused", "plain"] | None = Field(
        None,
        description="`fused` makes each adapted layer one operation, and one of those that read the same; `plain` uses "
        "torch's own operations. They round sums in another order.",
    )
    attention: Literal["timed", "torch"] | None = Field(
        None,
        description="On CUDA, `timed` times torch's attention kernels once on the run's own shapes and prefers the "
        "fastest; `torch` leaves the choice to torch.",
    )
    products: Literal["triton", "torch"] | None = Field(
        None,
        description="How `int8-fast` multiplies on CUDA: `triton` by kernels that also scale, add the bias and cast; "
        "`torch` by torch's product and an operation for each of these.",
    )
    compile: Literal["auto", "blocks", "off"] | None = Field(
        None,
        description="`blocks` compiles the repeated block, which takes a minute or more once; `off` does not; `auto` "
        "compiles on CUDA where triton is installed.",
    )
    recompute: Literal["all", "fit"] | Annotated[int, Field(ge=0)] | None = Field(
        None,
        description="How many blocks recompute their activations, where train.gradient_checkpointing is on: `all`, so "
        "many, or `fit`, as few as free memory allows.",
    )
    graphs: Literal["on", "off"] | None = Field(
        None, description="`on` captures passes as CUDA graphs, one for each form of batch. Never run on a GPU yet."
    )
    losses: Literal["late", "at once"] | None = Field(
        None,
        description="When an update's loss and gradient norm are read: `late`, so no GPU ever waits, or `at once`.",
    )


class Settings(Section):
    """A run as a person writes it: TOML, a preset, and `--set`, merged."""

    family: Annotated[str, Field(min_length=1)] = Field(description="Model family, by its registered name.")
    variant: str | None = Field(None, description="Published model of the family. Default: the family's.")
    preset: str | None = Field(None, description="Preset to start from, `NAME` or `FAMILY/NAME`; `none` for no preset.")
    name: Name | None = Field(
        None, description="Name of the run and its file. Default: the trigger, else family and variant."
    )
    trigger: Annotated[str, Field(max_length=200)] = Field(
        "", description="Word that calls what is taught; put before captions that lack it."
    )
    seed: int = Field(0, ge=0, lt=2**63, description="Seed of every draw in training.")
    output: Annotated[str, Field(min_length=1)] = Field("runs", description="Folder that the run's folder is made in.")
    model: Model = Model()
    data: tuple[Data, ...] = ()
    lora: Lora = Lora()
    optimizer: Optimizer = Optimizer()
    train: Train = Train()
    scheduler: Scheduler = Scheduler()
    quantization: Quantization = Quantization()
    text_encoder: TextEncoder = TextEncoder()
    speed: Speed = Speed()
    sampling: Sampling = Sampling()
    validation: Validation = Validation()
    save: Save = Save()
    plugin: dict[str, dict[str, JsonValue]] = Field(
        {}, description="Settings of plugins, a table `[plugin.NAME]` for each; `lorakit schema` has what each knows."
    )
