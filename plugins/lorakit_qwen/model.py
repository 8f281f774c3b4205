"""What Qwen-Image does: text, pictures and prediction, equal to diffusers' pipelines."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLQwenImage, QwenImageTransformer2DModel
from PIL import Image
from torch import Tensor, nn
from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2Tokenizer

from lorakit.engine.parts import Batch, Source, Text
from lorakit.engine.tokens import pack, unpack
from lorakit.plan import Plan
from lorakit_qwen.pictures import load_pictures

# diffusers' prompt templates, and the tokens of their system part that are dropped after encoding
# (QwenImagePipeline and QwenImageEditPlusPipeline: prompt_template_encode, prompt_template_encode_start_idx)
TEMPLATES = json.loads(Path(__file__).with_name("templates.json").read_text(encoding="utf-8"))
LONGEST = 1024  # tokens of a prompt without pictures, after the template's
PAD = "<|image_pad|>"  # one token of a picture


class QwenTextEncoder:
    """Qwen2.5-VL's last hidden states of a prompt in its template."""

    def __init__(self, plan: Plan, source: Source) -> None:
        variant = plan.settings.variant
        self._template = plan.settings.text_encoder.template
        self._pictures = load_pictures(source) if variant != "image" else None
        self._tokens = source.load(Qwen2Tokenizer, "processor" if self._pictures else "tokenizer")
        self._numbered = variant != "edit"  # the first editing model takes one picture, and does not count
        self.module: nn.Module = source.load(Qwen2_5_VLForConditionalGeneration, "text_encoder")

    def encode(self, captions: Sequence[str], references: Sequence[Image.Image] = ()) -> list[Text]:
        """Each caption's tokens after the template's system part, (1, L, D) each; one by one, without padding.

        As diffusers' pipelines do, but for the vision tokens' own positions, which they leave out (see the docs).
        """
        template = TEMPLATES["edit" if references else self._template]
        shown, seen = self._shown(references)
        cut = {} if references else {"truncation": True, "max_length": LONGEST + template["dropped"]}
        device, found = next(self.module.parameters()).device, []
        for caption in captions:
            told = {**self._tokens(template["text"].format(shown + caption), return_tensors="pt", **cut), **seen}
            if references:
                told["mm_token_type_ids"] = (told["input_ids"] == self._tokens.convert_tokens_to_ids(PAD)).int()
            answer = self.module(**{name: one.to(device) for name, one in told.items()}, output_hidden_states=True)
            states = answer.hidden_states[-1][:, template["dropped"] :]
            found.append(Text(states, (states.shape[1],)))
        return found

    def _shown(self, references: Sequence[Image.Image]) -> tuple[str, Mapping[str, Tensor]]:
        """What stands in the prompt for pictures, a token for each of their patches, and the patches."""
        if not references:
            return "", {}
        assert self._pictures is not None
        seen = self._pictures(images=list(references), return_tensors="pt")
        shown = ""
        for number, grid in enumerate(seen["image_grid_thw"], 1):
            tokens = int(grid.prod()) // self._pictures.merge_size**2
            shown += f"Picture {number}: " * self._numbered + f"<|vision_start|>{PAD * tokens}<|vision_end|>"
        return shown, seen


class QwenImageCoder:
    """The Qwen-Image VAE on single frames, in fp32; the posterior's mode, scaled by the model's own statistics."""

    def __init__(self, source: Source) -> None:
        vae = source.load(AutoencoderKLQwenImage, "vae", dtype=torch.float32)
        self.module: nn.Module = vae
        self._vae = vae
        self.scale = 2 ** len(vae.temperal_downsample)
        self.channels = int(vae.config.z_dim)

    def encode(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) to (B, 16, H / 8, W / 8)."""
        latents = self._vae.encode(pixels[:, :, None]).latent_dist.mode()[:, :, 0]
        mean, std = self._statistics(latents)
        scaled: Tensor = (latents - mean) / std
        return scaled

    def decode(self, latents: Tensor) -> Tensor:
        """The reverse."""
        mean, std = self._statistics(latents)
        pixels: Tensor = self._vae.decode((latents * std + mean)[:, :, None]).sample[:, :, 0]
        return pixels

    def _statistics(self, like: Tensor) -> tuple[Tensor, Tensor]:
        mean, std = (
            torch.tensor(values, device=like.device, dtype=like.dtype).view(1, -1, 1, 1)
            for values in (self._vae.config.latents_mean, self._vae.config.latents_std)
        )
        return mean, std


class QwenDenoiser:
    """The Qwen-Image transformer; latents become tokens of 2 by 2 here and nowhere else."""

    component = "transformer"

    def __init__(self, source: Source) -> None:
        self.module: Any = source.load(QwenImageTransformer2DModel, self.component)
        self.blocks: Sequence[nn.Module] = self.module.transformer_blocks

    def predict(self, noisy: Tensor, t: Tensor, batch: Batch) -> Tensor:
        """The velocity at noise levels t in (0, 1]."""
        height, width = noisy.shape[-2:]
        frames = (noisy, *batch.references)
        answer = self.module(
            hidden_states=torch.cat([pack(frame) for frame in frames], dim=1),
            timestep=t,
            encoder_hidden_states=batch.text.hidden,
            encoder_hidden_states_mask=batch.text.mask,
            img_shapes=[[(1, frame.shape[-2] // 2, frame.shape[-1] // 2) for frame in frames]] * noisy.shape[0],
            return_dict=False,
        )[0]
        return unpack(answer[:, : height * width // 4], height, width)

    def condition(self, t: Tensor, batch: Batch) -> Mapping[str, Tensor]:
        """The activated time embedding; for pictures also that of level 0, where references are modulated so."""
        t = t.to(batch.text.hidden.dtype)
        levels = torch.cat([t, t * 0]) if self.module.zero_cond_t else t
        seen = nn.functional.silu(self.module.time_text_embed(levels, batch.text.hidden))
        return {"img_mod.1": seen, "txt_mod.1": seen[: len(t)]}

    def guide(self, positive: Tensor, negative: Tensor, scale: float) -> Tensor:
        """True classifier-free guidance, each token brought back to the length of its positive prediction."""
        height, width = positive.shape[-2:]
        positive, negative = pack(positive), pack(negative)
        combined = negative + scale * (positive - negative)
        rescaled = combined * (positive.norm(dim=-1, keepdim=True) / combined.norm(dim=-1, keepdim=True))
        return unpack(rescaled, height, width)
