"""What Qwen-Image does: text, pictures and prediction, equal to diffusers' pipelines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers import AutoencoderKLQwenImage, QwenImageTransformer2DModel
from PIL import Image
from torch import Tensor, nn
from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2Tokenizer

from lorakit.engine.parts import Batch, Source, Text
from lorakit.plan import Plan
from lorakit_qwen.processor import load_processor

# diffusers' prompt templates, and the tokens of their system part that are dropped after encoding
# (QwenImagePipeline and QwenImageEditPlusPipeline: prompt_template_encode, prompt_template_encode_start_idx).
TEMPLATES = {
    "text-to-image": (
        "<|im_start|>system\nDescribe the image by detailing the color, shape, size, texture, quantity, text, spatial "
        "relationships of the objects and background:<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n"
        "<|im_start|>assistant\n",
        34,
    ),
    "edit": (
        "<|im_start|>system\nDescribe the key features of the input image (color, shape, size, texture, objects, "
        "background), then explain how the user's text instruction should alter or modify the image. Generate a new "
        "image that meets the user's requirements while maintaining consistency with the original input where "
        "appropriate.<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n",
        64,
    ),
}
LONGEST = 1024  # tokens of a prompt without pictures, after the template's
PICTURE = "<|vision_start|><|image_pad|><|vision_end|>"


class QwenTextEncoder:
    """Qwen2.5-VL's last hidden states of a prompt in its template."""

    def __init__(self, plan: Plan, source: Source) -> None:
        variant = plan.settings.variant
        self._template, self._dropped = TEMPLATES[plan.settings.text_encoder.template]
        self._processor = load_processor(source) if variant != "image" else None
        self._tokens = self._processor.tokenizer if self._processor else source.load(Qwen2Tokenizer, "tokenizer")
        self._numbered = variant != "edit"  # the first editing model takes one picture, and does not count
        self.module: nn.Module = source.load(Qwen2_5_VLForConditionalGeneration, "text_encoder")

    def encode(self, captions: Sequence[str], references: Sequence[Image.Image] = ()) -> list[Text]:
        """Each caption's tokens after the template's system part, (1, L, D) each."""
        return self._seeing(captions, references) if references else self._reading(captions)

    def _seeing(self, captions: Sequence[str], references: Sequence[Image.Image]) -> list[Text]:
        """As the editing pipelines do, with the vision tokens' own positions, which they leave out (see the docs)."""
        assert self._processor is not None
        template, dropped = TEMPLATES["edit"]
        names = [f"Picture {number}: " if self._numbered else "" for number in range(1, len(references) + 1)]
        pictures = "".join(f"{name}{PICTURE}" for name in names)
        found = []
        for caption in captions:
            seen = self._processor(
                text=[template.format(pictures + caption)], images=list(references), return_tensors="pt"
            ).to(next(self.module.parameters()).device)
            states = self.module(**seen, output_hidden_states=True).hidden_states[-1][:, dropped:]
            found.append(Text(states, (states.shape[1],)))
        return found

    def _reading(self, captions: Sequence[str]) -> list[Text]:
        tokens = self._tokens(
            [self._template.format(caption) for caption in captions],
            max_length=LONGEST + self._dropped,
            padding=True,
            truncation=True,
            return_tensors="pt",
        ).to(next(self.module.parameters()).device)
        states = self.module(
            input_ids=tokens.input_ids, attention_mask=tokens.attention_mask, output_hidden_states=True
        ).hidden_states[-1]
        kept = [
            state[mask.bool()][self._dropped :][:LONGEST]
            for state, mask in zip(states, tokens.attention_mask, strict=True)
        ]
        return [Text(one[None], (one.shape[0],)) for one in kept]


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


def pack(latents: Tensor) -> Tensor:
    """(B, C, H, W) to tokens (B, H/2 * W/2, C * 4), the four pixels of a token last."""
    return nn.functional.pixel_unshuffle(latents, 2).flatten(2).transpose(1, 2)


def unpack(tokens: Tensor, height: int, width: int) -> Tensor:
    """The reverse, for latents of `height` by `width`."""
    grid = tokens.transpose(1, 2).reshape(len(tokens), -1, height // 2, width // 2)
    return nn.functional.pixel_shuffle(grid, 2)
