"""Train the toy model of the Qwen family: `python -m tests.toys.train_qwen OUT`.

The result is a small diffusers pipeline folder of the real classes whose pictures follow their captions.
Everything is seeded and counted in updates, never in seconds, so that anyone can make it again. The world
that it draws is `lorakit.testing.shapes`. Three parts are made, each from the ones before:

1. the text side (tokenizer, text encoder, processor): the tokenizer is trained on the words of the captions,
   the text encoder is random and stays so, for a random network tells captions apart well enough;
2. the image coder, on shapes, rings and faces of any colour, so that it can show what nobody has seen yet;
3. the denoiser, on captioned scenes only, so that rings and faces are new to it.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import torch
import torch.nn.functional as functional
from diffusers import (
    AutoencoderKLQwenImage,
    FlowMatchEulerDiscreteScheduler,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
)
from diffusers.models.autoencoders.autoencoder_kl_qwenimage import QwenImageCausalConv3d
from PIL import Image
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
    Qwen2VLImageProcessorPil,
)
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

from lorakit.testing import shapes
from tests.toys import learning
from tests.toys.learning import SIDE, Report, Size, by_length, flow_times, follow, rate, step


@dataclass(frozen=True)
class Recipe:
    """How long and on how much each part learns."""

    seed: int = 0
    coder_pictures: int = 3072
    coder_updates: int = 1900
    coder_batch: int = 16
    coder_rate: float = 5e-3
    denoiser_pictures: int = 6144
    denoiser_updates: int = 12000
    denoiser_batch: int = 32
    denoiser_rate: float = 2e-3


# Text side -----------------------------------------------------------------------------------------------

# The system prompts of the diffusers pipelines, which cut 34 and 64 tokens off. As every word of them becomes
# one token of the toy's tokenizer, those fixed numbers are right here as with the published vocabulary.
PAINT_PROMPT = (
    "<|im_start|>system\nDescribe the image by detailing the color, shape, size, texture, quantity, text, "
    "spatial relationships of the objects and background:<|im_end|>\n<|im_start|>user\n"
)
EDIT_PROMPT = (
    "<|im_start|>system\nDescribe the key features of the input image (color, shape, size, texture, objects, "
    "background), then explain how the user's text instruction should alter or modify the image. Generate a "
    "new image that meets the user's requirements while maintaining consistency with the original input "
    "where appropriate.<|im_end|>\n<|im_start|>user\n"
)
PREFIX_TOKENS = {PAINT_PROMPT: 34, EDIT_PROMPT: 64}
SPECIAL_TOKENS = """
    <|endoftext|> <|im_start|> <|im_end|> <|object_ref_start|> <|object_ref_end|> <|box_start|> <|box_end|>
    <|quad_start|> <|quad_end|> <|vision_start|> <|vision_end|> <|vision_pad|> <|image_pad|> <|video_pad|>
""".split()  # noqa: SIM905 - a table of words reads better as words


def make_tokenizer(vocabulary: int = 1200) -> Qwen2Tokenizer:
    """Train the byte-level tokenizer of the real class, in which every known word is one token."""
    draft = Tokenizer(models.BPE())
    draft.normalizer = normalizers.NFC()
    draft.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), behavior="isolated", invert=False),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    draft.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=vocabulary, show_progress=False, initial_alphabet=alphabet)
    draft.train_from_iterator(_sentences(), trainer)
    learned = json.loads(draft.to_str())["model"]
    tokenizer = Qwen2Tokenizer(
        vocab=learned["vocab"],
        merges=[tuple(merge) for merge in learned["merges"]],
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        unk_token=None,
        extra_special_tokens=SPECIAL_TOKENS,
        model_max_length=131072,
    )
    for prompt, count in PREFIX_TOKENS.items():
        assert len(tokenizer(prompt).input_ids) == count, "the pipelines would cut the caption wrongly"
    return tokenizer


def _sentences() -> Iterator[str]:
    for _ in range(60):
        for prompt in PREFIX_TOKENS:
            yield from prompt.replace("<|im_start|>", "<|im_end|>").split("<|im_end|>")
        yield from (" assistant\n", "assistant\n", "user\n")
    yield from learning.sentences()


def make_text_encoder(tokenizer: Qwen2Tokenizer) -> Qwen2_5_VLForConditionalGeneration:
    """Build the random text encoder with its small vision tower."""
    number = tokenizer.convert_tokens_to_ids
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 32768,
            "rms_norm_eps": 1e-6,
            "bos_token_id": number("<|endoftext|>"),
            "eos_token_id": number("<|im_end|>"),
            "pad_token_id": number("<|endoftext|>"),
            # the sections must sum to half of the head's dimension
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]},
        },
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_heads": 2,
            "out_hidden_size": 64,
            "in_channels": 3,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "window_size": 112,
            "fullatt_block_indexes": [1],
        },
        image_token_id=number("<|image_pad|>"),
        video_token_id=number("<|video_pad|>"),
        vision_start_token_id=number("<|vision_start|>"),
        vision_end_token_id=number("<|vision_end|>"),
        # the language head is never used, so it shares the embedding's memory
        tie_word_embeddings=True,
    )
    return Qwen2_5_VLForConditionalGeneration(config).eval()


def save_processor(tokenizer: Qwen2Tokenizer, folder: Path) -> None:
    """Write what the edit pipelines' processor is loaded from, under the published class names."""
    Qwen2VLImageProcessorPil(
        min_pixels=56 * 56, max_pixels=28 * 28 * 1280, patch_size=14, merge_size=2, temporal_patch_size=2
    ).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    path = folder / "preprocessor_config.json"
    config = json.loads(path.read_text())
    config |= {"image_processor_type": "Qwen2VLImageProcessor", "processor_class": "Qwen2VLProcessor"}
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


# Image coder ---------------------------------------------------------------------------------------------


def to_pixels(images: Iterable[Image.Image]) -> Tensor:
    """Stack pictures of one size as (B, 3, 1, H, W) in -1..1."""
    return learning.to_pixels(images).unsqueeze(2)


def to_images(pixels: Tensor) -> list[Image.Image]:
    """Undo `to_pixels`."""
    levels = ((pixels[:, :, 0].clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return [Image.fromarray(level) for level in levels.permute(0, 2, 3, 1).numpy()]


def _one_frame_forward(self: QwenImageCausalConv3d, x: Tensor, cache_x: Tensor | None = None) -> Tensor:
    """Convolve one frame in two dimensions, which is equal: the causal past is padding."""
    assert cache_x is None
    assert x.shape[2] == 1
    padding = (self._padding[2], self._padding[0])
    return functional.conv2d(x[:, :, 0], self.weight[:, :, -1], self.bias, 1, padding).unsqueeze(2)


def fast_coder() -> AbstractContextManager[object]:
    """Make every image coder several times faster within this context, on single frames only."""
    return patch.object(QwenImageCausalConv3d, "forward", _one_frame_forward)


def make_coder() -> AutoencoderKLQwenImage:
    """Build an untrained image coder four times smaller, its residual blocks identity at first."""
    coder = AutoencoderKLQwenImage(
        base_dim=16, z_dim=16, dim_mult=[1, 2, 2], num_res_blocks=1, temperal_downsample=[False, True]
    )
    for name, parameter in coder.named_parameters():
        if ".conv2." in name or ".proj." in name:
            nn.init.zeros_(parameter)
    return coder


def train_coder(coder: AutoencoderKLQwenImage, recipe: Recipe) -> None:
    """Teach the coder to show scenes and any other pictures; half of each."""
    pictures = to_pixels(learning.coder_pictures(random.Random(recipe.seed), recipe.coder_pictures))
    optimizer = torch.optim.AdamW(coder.parameters(), betas=(0.9, 0.95), weight_decay=0.0)
    report = Report("image coder", recipe.coder_updates)
    coder.train()
    for update in range(recipe.coder_updates):
        # a convolution learns as well from a quarter of a picture; the last updates see whole ones
        part, count = (1.0, 4) if update > 0.85 * recipe.coder_updates else (0.5, 16)
        pixels = _crops(pictures[torch.randint(len(pictures), (recipe.coder_batch * count // 16,))], part)
        code = coder.encode(pixels).latent_dist.mode()
        shown = coder.decode(code + 0.05 * torch.randn_like(code)).sample
        error = shown - pixels
        loss = error.square().mean() + 0.1 * error.abs().mean() + 1e-4 * code.square().mean()
        step(coder, optimizer, loss, rate(recipe.coder_rate, update, recipe.coder_updates))
        report(update, error.square().mean())
    _fix_posterior(coder)
    coder.eval()
    # rounded as it will be saved, so that the denoiser learns the latents which users will see
    coder.half().float()


def _crops(pictures: Tensor, part: float) -> Tensor:
    return learning.crops(pictures, part).contiguous(memory_format=torch.channels_last_3d)  # a third faster


def _fix_posterior(coder: AutoencoderKLQwenImage) -> None:
    """Give the posterior almost no width, as published coders do, so that samples are nearly modes."""
    width = coder.config.z_dim
    with torch.no_grad():
        coder.quant_conv.weight[width:] = 0
        coder.quant_conv.bias[width:] = -12


def scale_latents(coder: AutoencoderKLQwenImage, latents: Tensor) -> None:
    """Write the mean and deviation of each channel into the coder's configuration."""
    mean, deviation = latents.mean((0, 2, 3, 4)), latents.std((0, 2, 3, 4))
    coder.register_to_config(latents_mean=mean.tolist(), latents_std=deviation.tolist())


@torch.no_grad()
def encode(coder: AutoencoderKLQwenImage, pixels: Tensor) -> Tensor:
    """Encode pictures to raw latents, some at a time."""
    return torch.cat([coder.encode(some).latent_dist.mode() for some in pixels.split(64)])


@torch.no_grad()
def reconstruction(coder: AutoencoderKLQwenImage, images: list[Image.Image]) -> float:
    """The peak signal-to-noise ratio of pictures that went through the coder, in decibels."""
    pixels = to_pixels(images)
    shown = coder.decode(encode(coder, pixels)).sample
    return learning.psnr(pixels, shown)


# Denoiser ------------------------------------------------------------------------------------------------


def make_denoiser() -> QwenImageTransformer2DModel:
    """Build an untrained denoiser."""
    return QwenImageTransformer2DModel(
        patch_size=2,
        in_channels=64,
        out_channels=16,
        num_layers=4,
        num_attention_heads=4,
        attention_head_dim=32,
        joint_attention_dim=64,
        guidance_embeds=False,
        axes_dims_rope=(8, 12, 12),
    )


def make_scheduler() -> FlowMatchEulerDiscreteScheduler:
    """Build the scheduler with the published values of Qwen-Image."""
    return FlowMatchEulerDiscreteScheduler(
        num_train_timesteps=1000,
        shift=1.0,
        use_dynamic_shifting=True,
        base_shift=0.5,
        max_shift=0.9,
        base_image_seq_len=256,
        max_image_seq_len=8192,
        shift_terminal=0.02,
        time_shift_type="exponential",
    )


@dataclass(frozen=True)
class Group:
    """Examples of one picture size and one caption length, so that a batch needs neither crop nor mask."""

    grid: Size
    latents: Tensor
    captions: Tensor


def draw_groups(pipeline: QwenImagePipeline, recipe: Recipe) -> list[Group]:
    """Draw the captioned pictures, measure their latents, and sort them into groups."""
    chance = random.Random(recipe.seed + 1)
    drawn = learning.draw_scenes(chance, recipe.denoiser_pictures)
    coder = pipeline.vae
    raw = {
        size: encode(coder, to_pixels(scene.draw(chance, size) for scene in scenes)) for size, scenes in drawn.items()
    }
    scale_latents(coder, raw[SIDE, SIDE])
    words = encode_captions(pipeline, {scene.caption for scenes in drawn.values() for scene in scenes})
    groups = []
    for size, scenes in drawn.items():
        packed, grid = pack(pipeline, raw[size])
        for chosen in by_length([words[scene.caption] for scene in scenes]):
            captions = torch.stack([words[scenes[index].caption] for index in chosen])
            groups.append(Group(grid, packed[chosen], captions))
    return groups


@torch.no_grad()
def encode_captions(pipeline: QwenImagePipeline, captions: Iterable[str]) -> dict[str, Tensor]:
    """Encode each caption alone, so without padding."""
    return {caption: pipeline.encode_prompt(caption)[0][0] for caption in sorted(captions)}


def pack(pipeline: QwenImagePipeline, raw: Tensor) -> tuple[Tensor, Size]:
    """Scale raw latents to unit size and pack them as the pipeline does; with them their grid of tokens."""
    config = pipeline.vae.config
    mean, deviation = (
        torch.tensor(values).view(1, -1, 1, 1, 1) for values in (config.latents_mean, config.latents_std)
    )
    count, channels, _, height, width = raw.shape
    latents = ((raw - mean) / deviation).permute(0, 2, 1, 3, 4)
    packed = QwenImagePipeline._pack_latents(latents, count, channels, height, width)
    return packed, (height // 2, width // 2)


def train_denoiser(pipeline: QwenImagePipeline, recipe: Recipe) -> None:
    """Teach the denoiser flow matching on the captioned scenes; the pipeline keeps its moving average."""
    groups = draw_groups(pipeline, recipe)
    shares = torch.tensor([float(len(group.latents)) for group in groups])
    nothing = list(encode_captions(pipeline, ["", " "]).values())
    denoiser, average = pipeline.transformer, copy.deepcopy(pipeline.transformer)
    optimizer = torch.optim.AdamW(denoiser.parameters(), betas=(0.9, 0.95), weight_decay=0.01)
    report = Report("denoiser", recipe.denoiser_updates)
    denoiser.train()
    for update in range(recipe.denoiser_updates):
        group = groups[int(torch.multinomial(shares, 1))]
        chosen = torch.randint(len(group.latents), (recipe.denoiser_batch,))
        captions = group.captions[chosen]
        if update % 10 == 0:  # guidance needs to know what a picture without a caption is
            captions = nothing[update // 10 % 2].expand(recipe.denoiser_batch, -1, -1)
        loss = flow_loss(denoiser, group.latents[chosen], captions, group.grid)
        step(denoiser, optimizer, loss, rate(recipe.denoiser_rate, update, recipe.denoiser_updates))
        follow(average, denoiser, min(0.998, (1 + update) / (10 + update)))
        report(update, loss)
    pipeline.transformer.load_state_dict(average.state_dict())
    denoiser.eval()


def flow_loss(denoiser: nn.Module, clean: Tensor, captions: Tensor, grid: Size) -> Tensor:
    """The flow-matching loss; half of the times are uniform, half are drawn to the middle."""
    count = len(clean)
    times = flow_times(count)
    noise, mix = torch.randn_like(clean), times.view(-1, 1, 1)
    predicted = denoiser(
        hidden_states=(1 - mix) * clean + mix * noise,
        timestep=times,
        encoder_hidden_states=captions,
        encoder_hidden_states_mask=None,
        img_shapes=[[(1, *grid)]] * count,
        return_dict=False,
    )[0]
    return (predicted - (noise - clean)).square().mean()


# All of it -----------------------------------------------------------------------------------------------


def make_pipeline(recipe: Recipe, coder: AutoencoderKLQwenImage) -> QwenImagePipeline:
    """Put the parts together, the denoiser untrained."""
    tokenizer = make_tokenizer()
    torch.manual_seed(recipe.seed)
    return QwenImagePipeline(
        scheduler=make_scheduler(),
        vae=coder,
        text_encoder=make_text_encoder(tokenizer),
        tokenizer=tokenizer,
        transformer=make_denoiser(),
    )


def save(pipeline: QwenImagePipeline, folder: Path) -> None:
    """Write the folder in half precision, readable for everybody."""
    copy.deepcopy(pipeline).to(torch.float16).save_pretrained(folder)
    save_processor(pipeline.tokenizer, folder / "processor")
    learning.readable(folder)


def examine(folder: Path, seeds: Iterable[int] = (1, 2)) -> dict[str, object]:
    """Load the folder as users do, ask for every colour and shape, and say how many pictures are right."""
    pipeline = QwenImagePipeline.from_pretrained(folder, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    drawn, concept = learning.exam_pictures()
    found: dict[str, object] = {
        "size_mb": learning.size_mb(folder),
        "psnr_scenes": round(reconstruction(pipeline.vae, drawn), 1),
        "psnr_concept": round(reconstruction(pipeline.vae, concept), 1),
    }
    scenes = shapes.plain_scenes()
    for seed in seeds:
        images = sample(pipeline, [scene.caption for scene in scenes], seed)
        found[f"accuracy_seed_{seed}"] = round(shapes.accuracy(images, scenes), 3)
    return found


def sample(pipeline: QwenImagePipeline, captions: list[str], seed: int, size: Size = (SIDE, SIDE)) -> list[Image.Image]:
    """Make one picture of each caption."""
    images: list[Image.Image] = pipeline(
        captions,
        negative_prompt=[" "] * len(captions),
        true_cfg_scale=3.0,
        width=size[0],
        height=size[1],
        num_inference_steps=20,
        generator=torch.Generator().manual_seed(seed),
    ).images
    return images


def main() -> None:
    """Make the folder and examine it."""
    recipe = Recipe()
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument("--coder-updates", type=int, default=recipe.coder_updates)
    parser.add_argument("--denoiser-updates", type=int, default=recipe.denoiser_updates)
    parser.add_argument("--coder", type=Path, help="take the image coder of this toy folder, as it is")
    given = parser.parse_args()
    recipe = Recipe(coder_updates=given.coder_updates, denoiser_updates=given.denoiser_updates)
    torch.set_num_threads(1)  # so that sums are taken in one order
    with fast_coder():
        torch.manual_seed(recipe.seed)
        if given.coder:
            coder = AutoencoderKLQwenImage.from_pretrained(given.coder / "vae", torch_dtype=torch.float32)
        else:
            coder = make_coder()
            train_coder(coder, recipe)
        pipeline = make_pipeline(recipe, coder)
        save(pipeline, given.out)
        train_denoiser(pipeline, recipe)
        save(pipeline, given.out)
    print(json.dumps(examine(given.out), indent=2))


if __name__ == "__main__":
    main()
