"""What SDXL does: text, pictures and prediction, equal to diffusers' StableDiffusionXLPipeline; files unpacked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, StableDiffusionXLPipeline, UNet2DConditionModel
from PIL import Image
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from lorakit.engine.parts import Batch, Source, Text, classifier_free
from lorakit.errors import ModelError
from lorakit.single_file import header
from lorakit.toys import rewrite

ENCODERS = {"text_encoder": CLIPTextModel, "text_encoder_2": CLIPTextModelWithProjection}

MARKS: dict[str, dict[str, Any]] = {
    "v_pred": {"prediction_type": "v_prediction"},
    "ztsnr": {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"},
}
"""Empty tensors by which trainers say what a single file was trained with, and what that is for the scheduler."""


class SdxlTextEncoder:
    """CLIP-L and OpenCLIP-bigG: the states before their last layers side by side, and the pooled state of the second.

    Captions are padded or cut to 77 tokens, and padding is read like words, as in the model's own training.
    """

    def __init__(self, source: Source) -> None:
        self._tokens = [source.load(CLIPTokenizer, name) for name in ("tokenizer", "tokenizer_2")]
        self._encoders = {name: source.load(kind, name) for name, kind in ENCODERS.items()}
        self.module: nn.Module = nn.ModuleDict(self._encoders)

    def encode(self, captions: Sequence[str], references: Sequence[Image.Image] = ()) -> list[Text]:
        """Each caption as (1, 77, 2048) and its pooled state (1, 1280)."""
        states, pooled = [], None
        for tokens, encoder in zip(self._tokens, self._encoders.values(), strict=True):
            numbers = tokens(
                list(captions),
                padding="max_length",
                max_length=tokens.model_max_length,
                truncation=True,
                return_tensors="pt",
            ).input_ids
            answer = encoder(numbers.to(encoder.device), output_hidden_states=True)
            states.append(answer.hidden_states[-2])
            pooled = answer[0]
        hidden = torch.cat(states, dim=-1)
        assert pooled is not None
        return [Text(one[None], (len(one),), whole[None]) for one, whole in zip(hidden, pooled, strict=True)]


class SdxlImageCoder:
    """The VAE in fp32, for in fp16 it overflows; the posterior's mode, scaled to unit variance."""

    def __init__(self, source: Source) -> None:
        vae = source.load(AutoencoderKL, "vae", dtype=torch.float32)
        self.module: nn.Module = vae
        self._vae, self._factor = vae, float(vae.config.scaling_factor)
        self.scale = 2 ** (len(vae.config.block_out_channels) - 1)
        self.channels = int(vae.config.latent_channels)

    def encode(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) to (B, 4, H / 8, W / 8)."""
        latents: Tensor = self._vae.encode(pixels).latent_dist.mode() * self._factor
        return latents

    def decode(self, latents: Tensor) -> Tensor:
        """The reverse."""
        pixels: Tensor = self._vae.decode(latents / self._factor).sample
        return pixels


class SdxlDenoiser:
    """The UNet; its blocks are its transformers, and the convolutions between them stay as they are."""

    component = "unet"
    guide = staticmethod(classifier_free)

    def __init__(self, source: Source) -> None:
        unet = source.load(UNet2DConditionModel, self.component)
        self.module: nn.Module = unet
        stages = (*unet.down_blocks, unet.mid_block, *unet.up_blocks)  # in the order in which they are reached
        self.blocks: Sequence[nn.Module] = [block for stage in stages for block in getattr(stage, "attentions", ())]

    def predict(self, noisy: Tensor, t: Tensor, batch: Batch) -> Tensor:
        """The noise, or the velocity, at levels t from 0 to 999."""
        told = {"text_embeds": batch.text.pooled, "time_ids": batch.sizes}
        answer: Tensor = self.module(
            noisy, t, encoder_hidden_states=batch.text.hidden, added_cond_kwargs=told, return_dict=False
        )[0]
        return answer

    def condition(self, t: Tensor, batch: Batch) -> Mapping[str, Tensor]:
        """Nothing: the noise level is added between the transformers, and no layer inside them is modulated."""
        return {}


def unpack(file: Path, config: Path, folder: Path) -> None:
    """Write a single file as a folder, in the file's number format, or fp32 where it has several.

    The scheduler is that of `config`, changed as the file's marks say.
    """
    held = header(file)
    formats = {one.dtype for one in held.values() if one.dtype.startswith(("F", "BF")) and one.shape != (0,)}
    dtype = {"F16": torch.float16, "BF16": torch.bfloat16}.get(formats.pop() if len(formats) == 1 else "")
    try:
        pipeline = StableDiffusionXLPipeline.from_single_file(
            str(file), config=str(config), torch_dtype=dtype or torch.float32, add_watermarker=False
        )
        parts = {name: getattr(pipeline, name) for name in (*ENCODERS, "unet", "vae")}
        empty = [name for name, part in parts.items() if any(one.is_meta for one in part.parameters())]
        if empty:
            raise ValueError(f"it holds only a part of the {empty[0]}")
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise ModelError(
            f"the model file {file} cannot be unpacked",
            where="model.source",
            why=f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), '')}",
            fix=f"Check that it is complete, and that {config} is the configuration of an SDXL model.",
        ) from error
    pipeline.save_pretrained(folder)
    for mark, change in MARKS.items():
        if mark in held:
            rewrite(folder / "scheduler" / "scheduler_config.json", change)
