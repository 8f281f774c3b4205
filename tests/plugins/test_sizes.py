"""The sizes of plans are those of the real classes at their true dimensions, on tensors without memory."""

import pytest
import torch
from diffusers import FluxTransformer2DModel, QwenImageTransformer2DModel, UNet2DConditionModel
from diffusers.models import Transformer2DModel
from torch import nn

from lorakit.sizes import Tokens
from lorakit_flux.size import size as flux
from lorakit_qwen.size import size as qwen
from lorakit_sdxl.size import size as sdxl
from tests.plugins.counting import flops

UNET = {
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "cross_attention_dim": 2048,
    "attention_head_dim": (5, 10, 20),
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
    "use_linear_projection": True,
}
TARGETS = {
    "qwen": ("attn.to_q", "attn.to_out.0", "attn.add_k_proj", "img_mlp.net.0.proj", "txt_mlp.net.2", "img_mod.1"),
    "flux": (
        "attn.to_q",
        "attn.to_add_out",
        "ff.net.2",
        "ff_context.net.0.proj",
        "proj_mlp",
        "proj_out",
        "norm.linear",
    ),
    "sdxl": ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out"),
}


def hollow(kind, **config):
    with torch.device("meta"):
        return kind(**config)


@pytest.fixture(scope="module")
def models():
    """The three denoisers with their repeated blocks, as published."""
    made = {
        "qwen": hollow(QwenImageTransformer2DModel),
        "flux": hollow(FluxTransformer2DModel, guidance_embeds=True),
        "sdxl": hollow(UNet2DConditionModel, **UNET),
    }
    blocks = {
        "qwen": list(made["qwen"].transformer_blocks),
        "flux": [*made["flux"].transformer_blocks, *made["flux"].single_transformer_blocks],
        "sdxl": [one for one in made["sdxl"].modules() if isinstance(one, Transformer2DModel)],
    }
    return {name: (model, blocks[name]) for name, model in made.items()}


def empty(*shape):
    return torch.empty(shape, device="meta")


def run_qwen(model, image, references, text):
    side = int(image**0.5)
    return model(
        hidden_states=empty(1, image * (1 + references), 64),
        timestep=empty(1),
        encoder_hidden_states=empty(1, text, 3584),
        encoder_hidden_states_mask=None,
        img_shapes=[[(1, side, side)] * (1 + references)],
        return_dict=False,
    )


def run_flux(model, image, references, text):
    length = image * (1 + references)
    return model(
        hidden_states=empty(1, length, 64),
        timestep=empty(1),
        guidance=empty(1),
        encoder_hidden_states=empty(1, text, 4096),
        pooled_projections=empty(1, 768),
        img_ids=empty(length, 3),
        txt_ids=empty(text, 3),
        return_dict=False,
    )


def run_sdxl(model, width, height, text):
    told = {"text_embeds": empty(1, 1280), "time_ids": empty(1, 6)}
    return model(empty(1, 4, height, width), empty(1), empty(1, text, 2048), added_cond_kwargs=told, return_dict=False)


SIZES = {"qwen": qwen({}), "flux": flux({}), "sdxl": sdxl({})}


def told(name, tokens):
    return SIZES[name].linear_flops(tokens) + SIZES[name].attention_flops(tokens)


@pytest.mark.parametrize(
    ("name", "image", "references", "text"),
    [
        ("qwen", 4096, 0, 64),
        ("qwen", 4096, 1, 266),
        ("qwen", 4096, 3, 670),
        ("flux", 4096, 0, 512),
        ("flux", 4096, 1, 512),
    ],
    ids=["qwen-image", "edit-2509, 1 reference", "edit-2509, 3 references", "flux.1-dev", "flux.1-kontext"],
)
def test_flops_are_those_of_the_transformers(models, name, image, references, text):
    model, _ = models[name]
    run = run_qwen if name == "qwen" else run_flux
    tokens = Tokens(image=image, reference=image * references, text=text)
    assert told(name, tokens) == pytest.approx(flops(lambda: run(model, image, references, text)), rel=0.005)


@pytest.mark.parametrize(("width", "height"), [(128, 128), (152, 104)])
def test_flops_are_those_of_the_unet(models, width, height):
    model, _ = models["sdxl"]
    tokens = Tokens(image=width * height, text=77)
    assert told("sdxl", tokens) == pytest.approx(flops(lambda: run_sdxl(model, width, height, 77)), rel=0.005)


@pytest.mark.parametrize("name", SIZES)
def test_parameters_are_those_of_the_classes(models, name):
    model, blocks = models[name]
    linears = [one for block in blocks for one in block.modules() if type(one) is nn.Linear]
    assert SIZES[name].parameters == sum(one.numel() for one in model.parameters())
    assert SIZES[name].quantizable == sum(one.weight.numel() for one in linears)
    assert SIZES[name].blocks == len(blocks)


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("rank", [1, 16])
def test_an_adapters_parameters_are_those_that_it_has(models, name, rank):
    _, blocks = models[name]
    for targets in (TARGETS[name], TARGETS[name][:1]):
        meant = [
            rank * (one.in_features + one.out_features)
            for block in blocks
            for inner, one in block.named_modules()
            if type(one) is nn.Linear and any(inner == target or inner.endswith(f".{target}") for target in targets)
        ]
        assert SIZES[name].adapter_parameters(targets, rank) == sum(meant) > 0
        assert SIZES[name].adapter_layers(targets) == len(meant)


def test_schnell_lacks_the_guidance_embedding():
    schnell = hollow(FluxTransformer2DModel, guidance_embeds=False)
    assert flux({"transformer": {"guidance_embeds": False}}).parameters == sum(map(torch.numel, schnell.parameters()))


def test_small_models_by_their_own_configuration():
    small = {"num_layers": 3, "num_attention_heads": 4, "attention_head_dim": 32, "joint_attention_dim": 64}
    made = hollow(QwenImageTransformer2DModel, axes_dims_rope=(8, 12, 12), **small)
    assert qwen({"transformer": small}).parameters == sum(map(torch.numel, made.parameters()))
    tiny = UNET | {"block_out_channels": (32, 64, 96), "transformer_layers_per_block": (1, 1, 2), "layers_per_block": 1}
    tiny |= {"attention_head_dim": (2, 4, 6), "cross_attention_dim": 48, "projection_class_embeddings_input_dim": 2816}
    made = hollow(UNet2DConditionModel, **tiny)
    assert sdxl({"unet": tiny}).parameters == sum(map(torch.numel, made.parameters()))
