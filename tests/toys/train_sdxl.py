"""Train the toy model of the SDXL family: `python -m tests.toys.train_sdxl OUT`.

As `train_qwen.py` does for its family: a small diffusers pipeline folder of the real classes, seeded and counted in
updates, that draws the world of `lorakit.testing.shapes`. The tokenizers are trained on the words of the captions, the
two text encoders are random and stay so, the image coder learns shapes of any colour, the denoiser captioned scenes.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    DDPMScheduler,
    EulerDiscreteScheduler,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from PIL import Image
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from lorakit.testing import examples, shapes
from tests.toys.learning import WORDS, Report, coder_pictures, follow, rate, step, to_pixels

Size = tuple[int, int]
SIDE = shapes.SIDE
SIZES: dict[Size, float] = {(SIDE, SIDE): 0.7, (SIDE + 16, SIDE - 16): 0.15, (SIDE - 16, SIDE + 16): 0.15}
CODER_SIDE = 64
CHANNELS = 16
WIDE, WIDER = 32, 48  # hidden sizes of the two text encoders


@dataclass(frozen=True)
class Recipe:
    """How long and on how much each part learns."""

    seed: int = 0
    coder_pictures: int = 3072
    coder_updates: int = 1100
    coder_batch: int = 16
    coder_rate: float = 3e-3
    denoiser_pictures: int = 6144
    denoiser_updates: int = 800
    denoiser_batch: int = 32
    denoiser_rate: float = 2e-3


# Text side -----------------------------------------------------------------------------------------------


def make_tokenizer(pad: str, vocabulary: int = 1000) -> CLIPTokenizer:
    """Train CLIP's tokenizer, in which every known word is one token; the published two differ in how they pad."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    draft = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    draft.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    words = Regex(r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+")
    draft.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(words, behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, show_progress=False, end_of_word_suffix="</w>", initial_alphabet=alphabet
    )
    chance = random.Random(0)
    draft.train_from_iterator((", ".join(chance.sample(WORDS, 6)) for _ in range(3000)), trainer)
    merges = [tuple(merge) for merge in json.loads(draft.to_str())["model"]["merges"]]
    # CLIP's own order: bytes, bytes that end a word, merges, and <|endoftext|> last, for the pooled text is the state
    # at the largest number
    tokens = [*alphabet, *(f"{one}</w>" for one in alphabet), *("".join(merge) for merge in merges)]
    vocab = {token: number for number, token in enumerate(dict.fromkeys(tokens))}
    for special in ("<|startoftext|>", "<|endoftext|>"):
        vocab[special] = len(vocab)
    return CLIPTokenizer(vocab=vocab, merges=merges, pad_token=pad, model_max_length=77)


def make_text_encoder(kind: type[nn.Module], tokenizer: CLIPTokenizer, hidden: int, act: str) -> nn.Module:
    """Build a random text encoder, its embeddings of unit size, so that words differ in what it answers."""
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=77,
        hidden_act=act,
        projection_dim=hidden,
        bos_token_id=0,
        eos_token_id=2,  # as published: the pooled state is that of the largest token number
        pad_token_id=1,
    )
    encoder = kind(config).eval()
    with torch.no_grad():
        for name, parameter in encoder.named_parameters():
            if "embedding" in name:
                parameter.mul_(1 / parameter.std())
            elif parameter.ndim == 2:
                parameter.mul_(0.7 / (parameter.std() * parameter.shape[1] ** 0.5))
    return encoder


# Parts ---------------------------------------------------------------------------------------------------


def make_coder() -> AutoencoderKL:
    """Build an untrained image coder four times smaller, its residual blocks identity at first.

    It has 16 channels where the published one has 4, which at this size could not hold sharp edges.
    """
    coder = AutoencoderKL(
        in_channels=3,
        out_channels=3,
        block_out_channels=(16, 32, 32),
        layers_per_block=1,
        latent_channels=CHANNELS,
        norm_num_groups=8,
        sample_size=SIDE,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        scaling_factor=1.0,
        force_upcast=True,
    )
    for name, parameter in coder.named_parameters():
        if ".conv2." in name or ".to_out." in name:
            nn.init.zeros_(parameter)
    return coder


def make_denoiser() -> UNet2DConditionModel:
    """Build an untrained denoiser with the published shape, blocks and naming, few and narrow."""
    return UNet2DConditionModel(
        sample_size=SIDE // 4,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        block_out_channels=(32, 64, 64),
        layers_per_block=2,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=(2, 4, 4),
        use_linear_projection=True,
        transformer_layers_per_block=(1, 1, 2),
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + WIDER,
        cross_attention_dim=WIDE + WIDER,
        norm_num_groups=8,
    )


def make_scheduler() -> EulerDiscreteScheduler:
    """Build the scheduler with the published values of SDXL."""
    return EulerDiscreteScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        interpolation_type="linear",
        prediction_type="epsilon",
        steps_offset=1,
        timestep_spacing="leading",
    )


def make_pipeline(recipe: Recipe, coder: AutoencoderKL) -> StableDiffusionXLPipeline:
    """Put the parts together, the denoiser untrained."""
    first, second = make_tokenizer("<|endoftext|>"), make_tokenizer("!")
    torch.manual_seed(recipe.seed)
    return StableDiffusionXLPipeline(
        vae=coder,
        text_encoder=make_text_encoder(CLIPTextModel, first, WIDE, "quick_gelu"),
        text_encoder_2=make_text_encoder(CLIPTextModelWithProjection, second, WIDER, "gelu"),
        tokenizer=first,
        tokenizer_2=second,
        unet=make_denoiser(),
        scheduler=make_scheduler(),
        force_zeros_for_empty_prompt=True,
        add_watermarker=False,
    )


# Image coder ---------------------------------------------------------------------------------------------


def train_coder(coder: AutoencoderKL, recipe: Recipe) -> None:
    """Teach the coder to show scenes and any other pictures, half of each."""
    chance = random.Random(recipe.seed)
    pictures = to_pixels(coder_pictures(chance, recipe.coder_pictures))
    optimizer = torch.optim.AdamW(coder.parameters(), betas=(0.9, 0.95), weight_decay=0.0)
    report = Report("image coder", recipe.coder_updates)
    coder.train()
    for update in range(recipe.coder_updates):
        whole = update > 0.85 * recipe.coder_updates
        side, count = (CODER_SIDE, recipe.coder_batch // 4) if whole else (CODER_SIDE // 2, recipe.coder_batch)
        top, left = (int(torch.randint(CODER_SIDE - side + 1, ())) for _ in range(2))
        pixels = pictures[torch.randint(len(pictures), (max(1, count),)), :, top : top + side, left : left + side]
        code = coder.encode(pixels).latent_dist.mode()
        shown = coder.decode(code + 0.05 * torch.randn_like(code)).sample
        error = shown - pixels
        loss = error.square().mean() + 0.1 * error.abs().mean() + 1e-3 * code.square().mean()
        step(coder, optimizer, loss, rate(recipe.coder_rate, update, recipe.coder_updates))
        report(update, error.square().mean())
    with torch.no_grad():  # almost no width, as published coders have it, so that samples are nearly modes
        coder.quant_conv.weight[coder.config.latent_channels :] = 0
        coder.quant_conv.bias[coder.config.latent_channels :] = -12
    coder.eval()
    coder.half().float()  # as it will be saved, so that the denoiser learns the latents which users will see


@torch.no_grad()
def encode(coder: AutoencoderKL, pixels: Tensor) -> Tensor:
    """Encode pictures to raw latents, some at a time."""
    return torch.cat([coder.encode(some).latent_dist.mode() for some in pixels.split(64)])


# Denoiser ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Group:
    """Examples of one picture size."""

    size: Size
    latents: Tensor
    captions: list[str]


def draw_groups(pipeline: StableDiffusionXLPipeline, recipe: Recipe) -> list[Group]:
    """Draw the captioned pictures, and scale their latents to unit size."""
    chance = random.Random(recipe.seed + 1)
    coder, groups = pipeline.vae, []
    for size, part in SIZES.items():
        scenes = [shapes.random_scene(chance) for _ in range(int(part * recipe.denoiser_pictures))]
        latents = encode(coder, to_pixels(scene.draw(chance, size) for scene in scenes))
        if size == (SIDE, SIDE):
            coder.register_to_config(scaling_factor=round(1 / latents.std().item(), 5))
        groups.append(Group(size, latents * coder.config.scaling_factor, [scene.caption for scene in scenes]))
    return groups


def train_denoiser(pipeline: StableDiffusionXLPipeline, recipe: Recipe) -> None:
    """Teach the denoiser to predict noise on the captioned scenes; the pipeline keeps its moving average."""
    groups = draw_groups(pipeline, recipe)
    words = encode_captions(pipeline, {"", " ", *(caption for group in groups for caption in group.captions)})
    shares = torch.tensor([float(len(group.latents)) for group in groups])
    denoiser, average = pipeline.unet, copy.deepcopy(pipeline.unet)
    optimizer = torch.optim.AdamW(denoiser.parameters(), betas=(0.9, 0.95), weight_decay=0.01)
    scheduler = DDPMScheduler.from_config(pipeline.scheduler.config)
    report = Report("denoiser", recipe.denoiser_updates)
    denoiser.train()
    for update in range(recipe.denoiser_updates):
        group = groups[int(torch.multinomial(shares, 1))]
        chosen = torch.randint(len(group.latents), (recipe.denoiser_batch,)).tolist()
        captions = [group.captions[index] for index in chosen]
        if update % 10 == 0:  # guidance needs to know what a picture without a caption is
            captions = ["", " "] * (recipe.denoiser_batch // 2)
        loss = noise_loss(denoiser, scheduler, group.latents[chosen], [words[one] for one in captions], group.size)
        step(denoiser, optimizer, loss, rate(recipe.denoiser_rate, update, recipe.denoiser_updates))
        follow(average, denoiser, min(0.99, (1 + update) / (10 + update)))
        report(update, loss)
    pipeline.unet.load_state_dict(average.state_dict())
    denoiser.eval()


@torch.no_grad()
def encode_captions(pipeline: StableDiffusionXLPipeline, captions: set[str]) -> dict[str, tuple[Tensor, Tensor]]:
    """Hidden states and pooled state of each caption."""
    found = {}
    for caption in sorted(captions):
        hidden, _, pooled, _ = pipeline.encode_prompt(caption, do_classifier_free_guidance=False)
        found[caption] = (hidden[0], pooled[0])
    return found


def noise_loss(
    denoiser: nn.Module, scheduler: DDPMScheduler, clean: Tensor, texts: list[tuple[Tensor, Tensor]], size: Size
) -> Tensor:
    """The error of the predicted noise, with min-SNR weights; what the model is told of original sizes varies."""
    count = len(texts)
    clean = clean[:count]
    times = torch.randint(1000, (count,))
    noise = torch.randn_like(clean)
    larger = 1 + 2 * torch.rand(count, 1) * (torch.rand(count, 1) < 0.5)
    shape = torch.tensor([float(size[1]), float(size[0])])
    ids = torch.cat([(shape * larger).round(), torch.zeros(count, 2), shape.expand(count, 2)], 1)
    told = {"text_embeds": torch.stack([pooled for _, pooled in texts]), "time_ids": ids}
    predicted = denoiser(
        scheduler.add_noise(clean, noise, times), times, torch.stack([hidden for hidden, _ in texts]),
        added_cond_kwargs=told,
    ).sample  # fmt: skip
    kept = scheduler.alphas_cumprod[times]
    snr = kept / (1 - kept)
    return ((predicted - noise).square().mean((1, 2, 3)) * snr.clamp(max=5) / snr).mean()


# All of it -----------------------------------------------------------------------------------------------


def save(pipeline: StableDiffusionXLPipeline, folder: Path) -> None:
    """Write the folder in half precision, readable for everybody."""
    copy.deepcopy(pipeline).to(torch.float16).save_pretrained(folder)
    for path in folder.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)  # safetensors writes files that only the owner can read


def examine(folder: Path, seeds: Iterable[int] = (1, 2)) -> dict[str, object]:
    """Load the folder as users do, ask for every colour and shape, and say how many pictures are right."""
    pipeline = StableDiffusionXLPipeline.from_pretrained(folder, torch_dtype=torch.float32, add_watermarker=False)
    pipeline.set_progress_bar_config(disable=True)
    scenes, chance = shapes.plain_scenes(), random.Random(99)
    concept = [one.image.resize((SIDE, SIDE), Image.Resampling.BOX) for one in examples.concept_examples()]
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    found: dict[str, object] = {"size_mb": round(size / 1e6, 2)}
    for name, images in (("scenes", [scene.draw(chance) for scene in scenes]), ("concept", concept)):
        pixels = to_pixels(images)
        with torch.no_grad():
            shown = pipeline.vae.decode(encode(pipeline.vae, pixels)).sample.clamp(-1, 1)
        found[f"psnr_{name}"] = round(10 * float(np.log10(4 / (shown - pixels).square().mean().item())), 1)
    for seed in seeds:
        images = sample(pipeline, [scene.caption for scene in scenes], seed)
        found[f"accuracy_seed_{seed}"] = round(shapes.accuracy(images, scenes), 3)
    return found


def sample(
    pipeline: StableDiffusionXLPipeline, captions: list[str], seed: int, size: Size = (SIDE, SIDE)
) -> list[Image.Image]:
    """Make one picture of each caption."""
    images: list[Image.Image] = pipeline(
        captions,
        negative_prompt=[" "] * len(captions),
        guidance_scale=3.0,
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
    torch.manual_seed(recipe.seed)
    if given.coder:
        coder = AutoencoderKL.from_pretrained(given.coder / "vae", torch_dtype=torch.float32)
        coder.register_to_config(scaling_factor=1.0)
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
