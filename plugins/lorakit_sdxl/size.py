"""What Stable Diffusion XL weighs and costs: as published, or as a model folder's configuration says.

An image token is a latent pixel, a block a Transformer2DModel; what lies between blocks is counted as outside.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from lorakit.sizes import Attention, Coder, Configs, Linears, Outside, Running, Size, Text

PUBLISHED = {
    "block_out_channels": (320, 640, 1280), "layers_per_block": 2, "transformer_layers_per_block": (1, 2, 10),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"), "in_channels": 4, "out_channels": 4,
    "cross_attention_dim": 2048, "addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 2816,
}  # fmt: skip


def size(configs: Configs) -> Size:
    """The UNet of convolutions and 70 transformer blocks, over a quarter and a sixteenth of the latent pixels."""
    about = {**PUBLISHED, **configs.get("unet", {})}
    coder = {"latent_channels": 4, "block_out_channels": (128, 256, 512, 512), **configs.get("vae", {})}
    walk = Walk(about)
    words, layers = about["cross_attention_dim"], sum(walk.layers.values())
    linears = [one for (width, share), count in walk.layers.items() for one in _layer(width, words, count, share)]
    linears += [one for (width, share), count in walk.blocks.items() for one in _around(width, count, share)]
    spread = sum(width * share * count for (width, share), count in walk.layers.items())
    norms = sum(17 * width * count for (width, _), count in walk.layers.items())
    return Size(
        parameters=sum(one.weights for one in linears) + norms + walk.parameters,
        blocks=sum(walk.blocks.values()),
        linears=tuple(linears),
        attentions=tuple(
            Attention(width=width, blocks=count, sees=sees, share=share)
            for (width, share), count in walk.layers.items()
            for sees in ("image", "text")
        ),
        outside=Outside(image=walk.image, once=walk.once),
        running=Running(
            kept=21.3 * spread + 7.4 * walk.spread,
            checkpointed=sum(width * share * count for (width, share), count in walk.blocks.items())
            + 7.4 * walk.spread,
            temporary=0.65 * walk.spread,
            moved=(39 * spread + 24.8 * walk.spread, 80 * spread + 21.5 * walk.spread),
            kernels=(22 * layers + 18 * walk.resnets, 24 * layers + 10 * walk.resnets),
        ),
        text=Text(fixed=77, width=words, parameters=123_060_480 + 694_659_840),  # CLIP-L and OpenCLIP bigG
        coder=Coder(
            parameters=83_653_863,
            channels=coder["latent_channels"],
            encoding=20 * coder["block_out_channels"][0],
            decoding=24 * coder["block_out_channels"][0],
        ),
        token=2 ** (len(coder["block_out_channels"]) - 1),
        stored=6,  # the repository holds every file in fp32 and in fp16
    )


def _around(width: int, count: int, share: float) -> tuple[Linears, ...]:
    """The layers in and out of a block."""
    return tuple(
        Linears(names=(name,), inputs=width, outputs=width, blocks=count, share=share)
        for name in ("proj_in", "proj_out")
    )


def _layer(width: int, words: int, count: int, share: float) -> tuple[Linears, ...]:
    """Attention within the picture, attention to the text, and a gated feed-forward network."""

    def linear(names: str, inputs: int, outputs: int, *, text: bool = False, keeps: bool = True) -> Linears:
        found = tuple(names.split())
        return Linears(
            names=found,
            inputs=inputs,
            outputs=outputs,
            blocks=count,
            sees="text" if text else "image",
            share=share,
            keeps=keeps,
        )

    return (
        linear("attn1.to_q attn1.to_k attn1.to_v", width, width),
        linear("attn1.to_out.0 attn2.to_out.0", width, width, keeps=False),
        linear("attn2.to_q", width, width),
        linear("attn2.to_k attn2.to_v", words, width, text=True, keeps=False),
        linear("ff.net.0.proj", width, 8 * width),
        linear("ff.net.2", 4 * width, width),
    )


class Walk:
    """The UNet from end to end: what lies outside its transformer blocks, and where those are.

    `image` and `once` are multiplications, `spread` is the channels that residual blocks put out times the share of
    latent pixels they have; by width and share, `blocks` counts transformers and `layers` what they repeat inside.
    """

    def __init__(self, about: Mapping[str, Any]) -> None:
        self.parameters, self.image, self.once, self.spread, self.resnets = 0, 0.0, 0, 0.0, 0
        self.blocks: Counter[tuple[int, float]] = Counter()
        self.layers: Counter[tuple[int, float]] = Counter()
        wide, layers = tuple(about["block_out_channels"]), about["layers_per_block"]
        depth = about["transformer_layers_per_block"]
        depths = (depth,) * len(wide) if isinstance(depth, int) else tuple(depth)
        self._time = 4 * wide[0]
        self._embed(wide[0], about["projection_class_embeddings_input_dim"])
        self._convolve(about["in_channels"], wide[0], 1.0)
        self._down(wide, layers, depths, about)
        self._up(wide, layers, depths, about)
        self.parameters += 2 * wide[0]
        self._convolve(wide[0], about["out_channels"], 1.0)

    def _down(self, wide: tuple[int, ...], layers: int, depths: tuple[int, ...], about: Mapping[str, Any]) -> None:
        self._skips, before, last = [wide[0]], wide[0], len(wide) - 1
        for level, width in enumerate(wide):
            share = 4.0**-level
            for _ in range(layers):
                self._resnet(before, width, share)
                if "CrossAttn" in about["down_block_types"][level]:
                    self._transformer(width, depths[level], share)
                self._skips.append(width)
                before = width
            if level < last:
                self._convolve(width, width, share / 4)
                self._skips.append(width)
        self._resnet(before, before, share)
        self._transformer(before, depths[-1], share)
        self._resnet(before, before, share)

    def _up(self, wide: tuple[int, ...], layers: int, depths: tuple[int, ...], about: Mapping[str, Any]) -> None:
        before = wide[-1]
        for level in reversed(range(len(wide))):
            width, share = wide[level], 4.0**-level
            for _ in range(layers + 1):
                self._resnet(before + self._skips.pop(), width, share)
                if "CrossAttn" in about["up_block_types"][len(wide) - 1 - level]:
                    self._transformer(width, depths[level], share)
                before = width
            if level:
                self._convolve(width, width, share * 4)

    def _embed(self, first: int, added: int) -> None:
        """The embeddings of the noise level, and of the picture's size and pooled text."""
        self.once += (first + 2 * self._time + added) * self._time
        self.parameters += (first + 2 * self._time + added + 4) * self._time

    def _convolve(self, inputs: int, outputs: int, share: float, side: int = 3) -> None:
        self.image += side * side * inputs * outputs * share
        self.parameters += side * side * inputs * outputs + outputs

    def _resnet(self, inputs: int, outputs: int, share: float) -> None:
        self._convolve(inputs, outputs, share)
        self._convolve(outputs, outputs, share)
        if inputs != outputs:
            self._convolve(inputs, outputs, share, side=1)
        self.once += self._time * outputs
        self.parameters += 2 * inputs + 2 * outputs + (self._time + 1) * outputs
        self.spread += outputs * share
        self.resnets += 1

    def _transformer(self, width: int, depth: int, share: float) -> None:
        """A transformer of `depth` layers between a norm with a linear layer in, and another out."""
        self.blocks[width, share] += 1
        self.layers[width, share] += depth
        self.parameters += 4 * width  # the norm's, and the biases of both
