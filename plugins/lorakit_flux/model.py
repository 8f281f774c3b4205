"""What FLUX.1 does: text, pictures and prediction, equal to diffusers' pipelines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel
from PIL import Image
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer, T5EncoderModel, T5Tokenizer

from lorakit.engine.parts import Batch, Source, Text, classifier_free
from lorakit.engine.tokens import pack, unpack
from lorakit.errors import ModelError
from lorakit.plan import Plan
from lorakit_flux.family import MODULATION


class FluxTextEncoder:
    """T5's last hidden states of a caption, padded to a fixed length that the model counts on, and CLIP's pooled one.

    No mask hides the padding and none of it is cut off, because the models were trained with it.
    """

    def __init__(self, plan: Plan, source: Source) -> None:
        self._longest = 256 if plan.settings.variant == "schnell" else 512  # max_sequence_length of the model cards
        self._tokenizer = source.load(CLIPTokenizer, "tokenizer")
        self._tokenizer_2 = source.load(T5Tokenizer, "tokenizer_2")
        self._clip = source.load(CLIPTextModel, "text_encoder")
        self._t5 = source.load(T5EncoderModel, "text_encoder_2")
        self.module: nn.Module = nn.ModuleDict({"text_encoder": self._clip, "text_encoder_2": self._t5})

    def encode(self, captions: Sequence[str], references: Sequence[Image.Image] = ()) -> list[Text]:
        """Each caption's (1, 512, D), or 256 tokens of schnell, and (1, D'); the encoders do not see references."""
        seen = self._numbers(self._tokenizer, captions, self._tokenizer.model_max_length)
        pooled = self._clip(seen).pooler_output
        with torch.no_grad():  # it is never trained, and gradients end here
            hidden = self._t5(self._numbers(self._tokenizer_2, captions, self._longest)).last_hidden_state
        return [Text(one[None], (self._longest,), other[None]) for one, other in zip(hidden, pooled, strict=True)]

    def _numbers(self, tokenizer: CLIPTokenizer | T5Tokenizer, captions: Sequence[str], longest: int) -> Tensor:
        found = tokenizer(
            list(captions), padding="max_length", max_length=longest, truncation=True, return_tensors="pt"
        )
        numbers: Tensor = found.input_ids.to(next(self.module.parameters()).device)
        return numbers


class FluxImageCoder:
    """The FLUX.1 VAE in fp32; the posterior's mode, moved and scaled as the model's configuration says."""

    def __init__(self, source: Source) -> None:
        vae = source.load(AutoencoderKL, "vae", dtype=torch.float32)
        self.module: nn.Module = vae
        self._vae = vae
        self.scale = 2 ** (len(vae.config.block_out_channels) - 1)
        self.channels = int(vae.config.latent_channels)

    def encode(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) to (B, 16, H / 8, W / 8)."""
        latents = self._vae.encode(pixels).latent_dist.mode()
        scaled: Tensor = (latents - self._vae.config.shift_factor) * self._vae.config.scaling_factor
        return scaled

    def decode(self, latents: Tensor) -> Tensor:
        """The reverse."""
        unscaled = latents / self._vae.config.scaling_factor + self._vae.config.shift_factor
        pixels: Tensor = self._vae.decode(unscaled).sample
        return pixels


class FluxDenoiser:
    """The FLUX.1 transformer; latents become tokens of 2 by 2 here and nowhere else."""

    component = "transformer"
    guide = staticmethod(classifier_free)

    def __init__(self, source: Source, guided: bool) -> None:
        self.module: Any = source.load(FluxTransformer2DModel, self.component)
        if self.module.config.guidance_embeds != guided:
            raise ModelError(
                f"the transformer of {source.name} {'takes no' if guided else 'takes'} guidance",
                why=f"that of this variant {'takes it' if guided else 'takes none'}",
                where="variant",
                fix=f"Say variant = {'schnell' if guided else 'dev'}, or name another model.source.",
            )
        self.blocks: Sequence[nn.Module] = [*self.module.transformer_blocks, *self.module.single_transformer_blocks]

    def predict(self, noisy: Tensor, t: Tensor, batch: Batch) -> Tensor:
        """The velocity at noise levels t in (0, 1]."""
        height, width = noisy.shape[-2:]
        frames = (noisy, *batch.references)
        places = torch.cat([_places(frame, number) for number, frame in enumerate(frames)])
        answer = self.module(
            hidden_states=torch.cat([pack(frame) for frame in frames], dim=1),
            timestep=t,
            guidance=None if batch.guidance is None else torch.full_like(t, batch.guidance),
            pooled_projections=batch.text.pooled,
            encoder_hidden_states=batch.text.hidden,
            txt_ids=places.new_zeros(batch.text.hidden.shape[1], 3),
            img_ids=places,
            return_dict=False,
        )[0]
        return unpack(answer[:, : height * width // 4], height, width)

    def condition(self, t: Tensor, batch: Batch) -> Mapping[str, Tensor]:
        """The activated embedding of noise level, guidance and pooled text, which is the same for all layers."""
        pooled = batch.text.pooled
        assert pooled is not None
        told = [t.to(pooled.dtype) * 1000]
        if batch.guidance is not None:
            told.append(torch.full_like(told[0], batch.guidance) * 1000)
        seen = nn.functional.silu(self.module.time_text_embed(*told, pooled))
        return dict.fromkeys(MODULATION, seen)


def _places(frame: Tensor, number: int) -> Tensor:
    """The position of each token of a frame, (H/2 * W/2, 3): 0 for the picture or 1 for its reference, row, column."""
    height, width = (torch.arange(side // 2, dtype=torch.float32, device=frame.device) for side in frame.shape[-2:])
    return torch.cartesian_prod(torch.full_like(height[:1], number), height, width)
