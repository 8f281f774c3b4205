"""What FLUX.1 weighs and costs: as published, or as a model folder's configuration says."""

from __future__ import annotations

from lorakit.sizes import Attention, Coder, Configs, Linears, Outside, Running, Size, Text

PUBLISHED = {"num_layers": 19, "num_single_layers": 38, "num_attention_heads": 24, "attention_head_dim": 128}
INPUTS = {"in_channels": 64, "joint_attention_dim": 4096, "pooled_projection_dim": 768, "guidance_embeds": True}


def size(configs: Configs) -> Size:
    """The transformer of 19 blocks with two streams and 38 with one; schnell lacks the guidance embedding."""
    about = {**PUBLISHED, **INPUTS, **configs.get("transformer", {})}
    coder = {"latent_channels": 16, "block_out_channels": (128, 256, 512, 512), **configs.get("vae", {})}
    double, single, head = about["num_layers"], about["num_single_layers"], about["attention_head_dim"]
    width, seen, words = about["num_attention_heads"] * head, about["in_channels"], about["joint_attention_dim"]
    told = about.get("out_channels") or seen
    linears = _linears(width, double, single)
    biases = sum(len(one.names) * one.outputs * one.blocks for one in linears) + (4 * double + 2 * single) * head
    embedded = 2 if about["guidance_embeds"] else 1  # of the noise level, and of the guidance
    once = embedded * (256 + width) + about["pooled_projection_dim"] + width + 2 * width
    rest = (seen + told + words + once) * width + (2 * embedded + 6) * width + told
    return Size(
        parameters=sum(one.weights for one in linears) + biases + rest,
        blocks=double + single,
        linears=linears,
        attentions=(Attention(width=width, blocks=double + single),),
        outside=Outside(image=(seen + told) * width, text=words * width, once=once * width),
        running=Running(
            kept=(14 * double + 13.1 * single) * width,
            checkpointed=(double + single) * width,
            temporary=9 * width,
            moved=((90 * double + 85 * single) * width, (120 * double + 117 * single) * width),
            kernels=(94 * double + 49 * single + 80, 108 * double + 61 * single + 20),
        ),
        # T5 pads or cuts every caption to 512 tokens; T5-XXL and CLIP-L
        text=Text(fixed=512, width=words, parameters=4_762_310_656 + 123_060_480),
        coder=Coder(
            parameters=83_819_683,
            channels=coder["latent_channels"],
            encoding=20 * coder["block_out_channels"][0],
            decoding=24 * coder["block_out_channels"][0],
        ),
        token=2 ** len(coder["block_out_channels"]),  # the coder halves the sides once less, and a token is 2 by 2
    )


def _linears(width: int, double: int, single: int) -> tuple[Linears, ...]:
    def both(
        image: tuple[str, ...], text: tuple[str, ...], inputs: int, outputs: int, keeps: bool = True
    ) -> tuple[Linears, Linears]:
        shape = {"inputs": inputs * width, "outputs": outputs * width, "blocks": double}
        return (
            Linears(names=image, **shape, sees="image", keeps=keeps),
            Linears(names=text, **shape, sees="text", keeps=keeps),
        )

    queries, added = (
        tuple(f"attn.{name}" for name in names)
        for names in (("to_q", "to_k", "to_v"), ("add_q_proj", "add_k_proj", "add_v_proj"))
    )
    return (
        Linears(
            names=("norm1.linear", "norm1_context.linear"), inputs=width, outputs=6 * width, blocks=double, sees="once"
        ),
        *both(queries, added, 1, 1),
        *both(("attn.to_out.0",), ("attn.to_add_out",), 1, 1, keeps=False),
        *both(("ff.net.0.proj",), ("ff_context.net.0.proj",), 1, 4),
        *both(("ff.net.2",), ("ff_context.net.2",), 4, 1),
        Linears(names=("norm.linear",), inputs=width, outputs=3 * width, blocks=single, sees="once"),
        Linears(names=queries, inputs=width, outputs=width, blocks=single, sees="all"),
        Linears(names=("proj_mlp",), inputs=width, outputs=4 * width, blocks=single, sees="all", keeps=False),
        Linears(names=("proj_out",), inputs=5 * width, outputs=width, blocks=single, sees="all"),
    )
