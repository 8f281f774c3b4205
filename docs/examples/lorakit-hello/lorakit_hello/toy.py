"""A toy of the real classes: few and narrow layers, random weights, a tokenizer that spells. Nothing is downloaded."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionPipeline, UNet2DConditionModel
from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

WIDTH = 32  # of a token of text


def write(folder: Path) -> None:
    """Write the whole model folder; always the same one."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        tokenizer = _tokenizer()
        parts = {"text_encoder": _text_encoder(len(tokenizer)), "vae": _vae(), "unet": _unet()}
    scheduler = EulerDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1, timestep_spacing="leading"
    )
    no_checker = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    StableDiffusionPipeline(tokenizer=tokenizer, scheduler=scheduler, **parts, **no_checker).save_pretrained(folder)


def _tokenizer() -> CLIPTokenizer:
    """A token for each letter, and one for each letter that ends a word."""
    letters = sorted(ByteLevel.alphabet())
    known = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: number for number, token in enumerate(known)}
    return CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=77)


def _text_encoder(tokens: int) -> CLIPTextModel:
    size = {"hidden_size": WIDTH, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    ends = {"bos_token_id": tokens - 2, "eos_token_id": tokens - 1, "pad_token_id": tokens - 1}
    return CLIPTextModel(CLIPTextConfig(vocab_size=tokens, max_position_embeddings=77, **size, **ends)).eval()


def _vae() -> AutoencoderKL:
    """Scales by 8, as the published one; its factor is what brings latents of pictures to unit variance."""
    vae = AutoencoderKL(
        block_out_channels=(8, 16, 16, 16),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        norm_num_groups=4,
    ).eval()
    with torch.no_grad():
        pictures = torch.nn.functional.interpolate(torch.rand(8, 3, 4, 4) * 2 - 1, size=64)
        vae.register_to_config(scaling_factor=1 / float(vae.encode(pictures).latent_dist.mode().std()))
    return vae


def _unet() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        attention_head_dim=4,
        cross_attention_dim=WIDTH,
        norm_num_groups=8,
    ).eval()
