"""What Stable Diffusion 1.5 does: text, pictures and prediction, equal to diffusers' StableDiffusionPipeline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from PIL import Image
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from lorakit.engine.parts import Batch, Source, Text, classifier_free


class HelloTextEncoder:
    """CLIP-L's last hidden states; captions are padded or cut to 77 tokens, and padding is read like words."""

    def __init__(self, source: Source) -> None:
        self._tokens = source.load(CLIPTokenizer, "tokenizer")
        self.module: nn.Module = source.load(CLIPTextModel, "text_encoder")

    def encode(self, captions: Sequence[str], references: Sequence[Image.Image] = ()) -> list[Text]:
        """Each caption as (1, 77, 768)."""
        longest = self._tokens.model_max_length
        numbers = self._tokens(
            list(captions), padding="max_length", max_length=longest, truncation=True, return_tensors="pt"
        ).input_ids
        hidden = self.module(numbers.to(next(self.module.parameters()).device)).last_hidden_state
        return [Text(one[None], (longest,)) for one in hidden]


class HelloImageCoder:
    """The VAE in fp32; the posterior's mode, scaled to unit variance."""

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


class HelloDenoiser:
    """The UNet; its blocks are its transformers, and the convolutions between them stay as they are."""

    component = "unet"
    guide = staticmethod(classifier_free)

    def __init__(self, source: Source) -> None:
        unet = source.load(UNet2DConditionModel, self.component)
        self.module: nn.Module = unet
        stages = (*unet.down_blocks, unet.mid_block, *unet.up_blocks)
        self.blocks: Sequence[nn.Module] = [block for stage in stages for block in getattr(stage, "attentions", ())]

    def predict(self, noisy: Tensor, t: Tensor, batch: Batch) -> Tensor:
        """The noise at levels t from 0 to 999."""
        answer: Tensor = self.module(noisy, t, encoder_hidden_states=batch.text.hidden, return_dict=False)[0]
        return answer

    def condition(self, t: Tensor, batch: Batch) -> Mapping[str, Tensor]:
        """Nothing: no layer inside the blocks sees the noise level alone."""
        return {}
