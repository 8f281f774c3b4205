"""What Qwen-Image weighs and costs: as published, or as a model folder's configuration says."""

from __future__ import annotations

from lorakit.sizes import Attention, Coder, Configs, Linears, Outside, Running, Size, Stream, Text

PUBLISHED = {"num_layers": 60, "num_attention_heads": 24, "attention_head_dim": 128, "joint_attention_dim": 3584}
STREAMS: tuple[tuple[Stream, str, str, str], ...] = (
    ("image", "img", "to_{}", "to_out.0"),
    ("text", "txt", "add_{}_proj", "to_add_out"),
)


def size(configs: Configs) -> Size:
    """The transformer of 60 blocks whose pictures and text go through layers of their own and one attention."""
    about = {**PUBLISHED, "in_channels": 64, "out_channels": 16, "patch_size": 2, **configs.get("transformer", {})}
    coder = {"z_dim": 16, "temperal_downsample": (0, 1, 1), "base_dim": 96, **configs.get("vae", {})}
    blocks, head, patch, words = (
        about[name] for name in ("num_layers", "attention_head_dim", "patch_size", "joint_attention_dim")
    )
    width, seen, told = about["num_attention_heads"] * head, about["in_channels"], patch**2 * about["out_channels"]
    linears = [one for stream in STREAMS for one in _stream(width, blocks, *stream)]
    biases = sum(len(one.names) * one.outputs * one.blocks for one in linears) + blocks * 4 * head
    outside = Outside(image=(seen + told) * width, text=words * width, once=(256 + 3 * width) * width)
    rest = (seen + told + words + 256 + 3 * width) * width + 6 * width + words + told
    return Size(
        parameters=sum(one.weights for one in linears) + biases + rest,
        blocks=blocks,
        linears=tuple(linears),
        attentions=(Attention(width=width, blocks=blocks),),
        outside=outside,
        running=Running(
            kept=16.1 * width * blocks,
            checkpointed=width * blocks,
            temporary=8 * width,
            moved=(68 * width * blocks, 106 * width * blocks),
            kernels=(90 * blocks + 37, 114 * blocks + 20),
        ),
        # 5 tokens end the template; a token is about four letters; a token of Qwen2.5-VL is 28 pixels square
        text=Text(fixed=5, per_letter=0.25, most=1024, pixels=28 * 28, width=words, parameters=8_292_166_656),
        coder=Coder(
            parameters=126_892_531,
            channels=coder["z_dim"],
            encoding=40.2 * coder["base_dim"],
            decoding=72.1 * coder["base_dim"],
        ),
        token=patch * 2 ** len(coder["temperal_downsample"]),
    )


def _stream(width: int, blocks: int, sees: Stream, prefix: str, projection: str, out: str) -> list[Linears]:
    """The layers of one stream: modulation, attention, and a feed-forward network of four times the width."""
    queries = tuple("attn." + projection.format(name) for name in "qkv")
    return [
        Linears(names=(f"{prefix}_mod.1",), inputs=width, outputs=6 * width, blocks=blocks, sees="once"),
        Linears(names=queries, inputs=width, outputs=width, blocks=blocks, sees=sees),
        Linears(names=(f"attn.{out}",), inputs=width, outputs=width, blocks=blocks, sees=sees, keeps=False),
        Linears(names=(f"{prefix}_mlp.net.0.proj",), inputs=width, outputs=4 * width, blocks=blocks, sees=sees),
        Linears(names=(f"{prefix}_mlp.net.2",), inputs=4 * width, outputs=width, blocks=blocks, sees=sees),
    ]
