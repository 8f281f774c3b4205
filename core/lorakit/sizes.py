"""What a model weighs and costs, as data: one form for transformers and for UNets, without torch.

A linear layer multiplies its weights with every token that it sees, so its cost is told by its width, by how many of it
there are, and by which tokens those are. Convolutions are told the same way, outside the blocks. FLOPs count a
multiplication and an addition as two. Elements are numbers of the training precision.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from lorakit.buckets import Shape

Configs = Mapping[str, Mapping[str, Any]]
"""By component, the config.json of a model folder; without a component, its published values are meant."""
Stream = Literal["image", "text", "all", "once"]
"""Who goes through a layer: tokens of pictures and references, of text, of both, or one vector for each picture."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """How long one sample is."""

    image: float
    reference: float = 0
    text: float = 0

    def seen(self, stream: Stream, share: float = 1.0) -> float:
        """Vectors that a layer of `stream` sees; `share` is the part of the image tokens that its depth has left."""
        image = (self.image + self.reference) * share
        return {"image": image, "text": self.text, "all": image + self.text, "once": 1}[stream]


@dataclass(frozen=True, slots=True, kw_only=True)
class Linears:
    """Linear layers of the repeated blocks that are alike and read one input.

    `names` are the ends of their names inside a block, `blocks` how many blocks have them. `keeps` says whether an
    adapter on them makes the block keep that input for the backward pass.
    """

    names: tuple[str, ...]
    inputs: int
    outputs: int
    blocks: int
    sees: Stream = "image"
    share: float = 1.0
    keeps: bool = True

    @property
    def weights(self) -> int:
        """Weights of all of them, without biases."""
        return len(self.names) * self.inputs * self.outputs * self.blocks

    def adapted(self, targets: Collection[str]) -> int:
        """How many of `names` the targets mean, by the rule that adapters are attached by."""
        return sum(any(name == one or name.endswith(f".{one}") for one in targets) for name in self.names)


@dataclass(frozen=True, slots=True, kw_only=True)
class Attention:
    """Attention in `blocks` blocks over `width` numbers a token: of all tokens, of image tokens, of image to text."""

    width: int
    blocks: int
    sees: Literal["all", "image", "text"] = "all"
    share: float = 1.0

    def flops(self, tokens: Tokens) -> float:
        """FLOPs of one forward pass: two products, of queries with keys and of scores with values."""
        queries = tokens.seen("all" if self.sees == "all" else "image", self.share)
        keys = tokens.text if self.sees == "text" else queries
        return 4 * queries * keys * self.width * self.blocks


@dataclass(frozen=True, slots=True, kw_only=True)
class Outside:
    """Multiplications outside the blocks' linear layers, for each image token, each text token, and once a picture."""

    image: float = 0
    text: float = 0
    once: float = 0

    def flops(self, tokens: Tokens) -> float:
        """FLOPs of one forward pass."""
        return 2 * (self.image * tokens.seen("image") + self.text * tokens.text + self.once)


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """How long captions become, and what their encoder weighs.

    A caption has `fixed` tokens and `per_letter` more for each letter, but at most `most`; a reference that the encoder
    sees has one token for `pixels` of its pixels, 0 where it sees none. `width` is of a token, `parameters` of all
    encoders together.
    """

    fixed: float
    per_letter: float = 0
    most: float = math.inf
    pixels: int = 0
    width: int
    parameters: int

    def tokens(self, letters: float, seen: float = 0) -> float:
        """Tokens of a caption of so many letters with `seen` pixels of references."""
        written = min(self.most, self.fixed + self.per_letter * letters)
        return written + (seen / self.pixels if self.pixels else 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Coder:
    """The image coder: its parameters, its channels, and what it needs at once for each pixel, in bytes of fp32."""

    parameters: int
    channels: int
    encoding: float
    decoding: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """What the frozen denoiser does besides matrix products, counted on meta tensors of the real classes.

    In elements for each token: `kept` is what the whole model keeps for the backward pass, `checkpointed` the same
    with gradient checkpointing, `temporary` what the backward pass needs besides, `moved` what element-wise
    operations read and write, forward and backward. `kernels` are operations, forward and backward.
    """

    kept: float
    checkpointed: float
    temporary: float
    moved: tuple[float, float]
    kernels: tuple[float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """One model: its denoiser, text encoder and image coder.

    `token` is the side in pixels of the square that is one image token, `blocks` the number of repeated blocks,
    `stored` the bytes of a parameter as published.
    """

    parameters: int
    blocks: int
    linears: tuple[Linears, ...]
    attentions: tuple[Attention, ...]
    outside: Outside
    running: Running
    text: Text
    coder: Coder
    token: int
    stored: int = 2

    def image_tokens(self, shape: Shape) -> int:
        """Image tokens of a picture."""
        return -(-shape.width // self.token) * -(-shape.height // self.token)

    def linear_flops(self, tokens: Tokens) -> float:
        """FLOPs of one forward pass outside attention."""
        return self.block_flops(tokens) + self.outside.flops(tokens)

    def block_flops(self, tokens: Tokens, *, once: bool = True) -> float:
        """FLOPs of one forward pass through the blocks' linear layers, with or without those used once a picture."""
        return sum(
            2 * one.weights * tokens.seen(one.sees, one.share) for one in self.linears if once or one.sees != "once"
        )

    def attention_flops(self, tokens: Tokens) -> float:
        """FLOPs of one forward pass through attention."""
        return sum(one.flops(tokens) for one in self.attentions)

    def adapted(self, targets: Collection[str]) -> Iterator[tuple[Linears, int]]:
        """The layers that an adapter on `targets` stands on, and how many of each block."""
        return ((one, count) for one in self.linears if (count := one.adapted(targets)))

    def adapter_layers(self, targets: Collection[str]) -> int:
        """How many layers an adapter on `targets` stands on."""
        return sum(count * one.blocks for one, count in self.adapted(targets))

    def adapter_parameters(self, targets: Collection[str], rank: int) -> int:
        """Trained parameters of an adapter."""
        return sum(rank * (one.inputs + one.outputs) * count * one.blocks for one, count in self.adapted(targets))

    def adapter_flops(self, tokens: Tokens, targets: Collection[str], rank: int) -> float:
        """FLOPs of the adapter's own products in one forward pass."""
        return sum(
            2 * rank * (one.inputs + one.outputs) * count * one.blocks * tokens.seen(one.sees, one.share)
            for one, count in self.adapted(targets)
        )

    @property
    def quantizable(self) -> int:
        """Weights that a quantizer may hold: those of linear layers inside the blocks."""
        return sum(one.weights for one in self.linears)

    @property
    def largest_block(self) -> float:
        """Weights of the linear layers of the largest block; blocks of one kind have layers in the same number."""
        of = {one.blocks: 0.0 for one in self.linears}
        for one in self.linears:
            of[one.blocks] += one.weights / one.blocks
        everywhere = of.pop(self.blocks, 0.0)
        return everywhere + max(of.values(), default=0.0)

    def kept(self, tokens: Tokens, targets: Collection[str]) -> float:
        """Elements that the whole model keeps for the backward pass without gradient checkpointing."""
        inputs = (
            one.inputs * one.blocks * tokens.seen(one.sees, one.share) for one, _ in self.adapted(targets) if one.keeps
        )
        return self.running.kept * self.length(tokens) + sum(inputs)

    def length(self, tokens: Tokens) -> float:
        """Tokens that run through the blocks: text too where it takes part in attention."""
        return tokens.seen("all" if any(one.sees == "all" for one in self.attentions) else "image")


Sizer = Callable[[Configs], Size]
"""What a variant gives: its size by the configuration of its components."""
