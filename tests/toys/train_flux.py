"""Train the toy model of the FLUX.1 family: `python -m tests.toys.train_flux OUT`.

As `train_qwen` does for its family: a small diffusers pipeline folder of the real classes, seeded and counted in
updates, that draws the world of `lorakit.testing.shapes`. The tokenizers know the words of the captions, the two
text encoders are random and stay so, the image coder learns shapes of any colour. The denoiser learns captioned
scenes in two turns, as the published one did: plain flow matching first, which it is told of as guidance 1; then to
answer at once, for any guidance that it is told, what classifier-free guidance makes of two of its own predictions.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import random
import string
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from PIL import Image
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, T5Config, T5EncoderModel, T5Tokenizer

from lorakit.testing import shapes
from tests.toys import learning
from tests.toys.learning import SIDE, Report, Size, follow, rate, step

WIDE = 64  # hidden size of both text encoders
T5_TOKENS = 512
STRONGEST = 4.5  # guidance that is learned


@dataclass(frozen=True)
class Recipe:
    """How long and on how much each part learns."""

    seed: int = 0
    coder_pictures: int = 2048
    coder_updates: int = 700
    coder_batch: int = 16
    coder_rate: float = 5e-3
    denoiser_pictures: int = 4096
    denoiser_updates: int = 4400
    denoiser_batch: int = 16
    denoiser_rate: float = 2e-3
    guided_updates: int = 160
    guided_rate: float = 4e-4


# Text side -----------------------------------------------------------------------------------------------


def t5_tokenizer() -> T5Tokenizer:
    """T5's tokenizer, with a piece for every known word and every letter.

    Written out, because the trainer of its kind does not give the same pieces twice.
    """
    marks = [(mark, 0.0) for mark in ("<pad>", "</s>", "<unk>")]
    words = [(f"▁{word}", -5.0) for word in dict.fromkeys(learning.WORDS)]
    known = {piece for piece, _ in words}
    letters = [(letter, -10.0) for letter in ["▁", *string.printable.strip()] if letter not in known]
    return T5Tokenizer(vocab=[*marks, *words, *letters], model_max_length=T5_TOKENS)


def make_clip(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """The random text encoder whose pooled answer the denoiser is told."""
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDE,
        intermediate_size=2 * WIDE,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=77,
        hidden_act="quick_gelu",
        projection_dim=WIDE,
        bos_token_id=0,
        eos_token_id=2,  # as published: the end of the text is then looked for as the largest token
        pad_token_id=1,
    )
    return CLIPTextModel(config).eval()


def make_t5(tokenizer: T5Tokenizer) -> T5EncoderModel:
    """The random text encoder of the token sequence. It does not see places, so that all its padding is alike."""
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=WIDE,
        d_kv=16,
        d_ff=2 * WIDE,
        num_layers=2,
        num_heads=4,
        feed_forward_proj="gated-gelu",
        decoder_start_token_id=0,
    )
    encoder = T5EncoderModel(config).eval()
    nn.init.zeros_(encoder.encoder.block[0].layer[0].SelfAttention.relative_attention_bias.weight)
    return encoder


# Image coder ---------------------------------------------------------------------------------------------


def make_coder() -> AutoencoderKL:
    """Build an untrained image coder four times smaller, its residual blocks identity at first."""
    coder = AutoencoderKL(
        block_out_channels=(16, 32, 32),
        layers_per_block=1,
        latent_channels=16,
        norm_num_groups=4,
        sample_size=SIDE,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        use_quant_conv=False,
        use_post_quant_conv=False,
        scaling_factor=1.0,
        shift_factor=0.0,
    )
    for name, parameter in coder.named_parameters():
        if ".conv2." in name or ".to_out.0." in name:
            nn.init.zeros_(parameter)
    return coder


def train_coder(coder: AutoencoderKL, recipe: Recipe) -> None:
    """Teach the coder to show scenes and any other pictures."""
    pictures = learning.to_pixels(learning.coder_pictures(random.Random(recipe.seed), recipe.coder_pictures))
    optimizer = torch.optim.AdamW(coder.parameters(), betas=(0.9, 0.95), weight_decay=0.0)
    report = Report("image coder", recipe.coder_updates)
    coder.train()
    for update in range(recipe.coder_updates):
        # a convolution learns as well from a quarter of a picture; the last updates see whole ones
        part, count = (1.0, 4) if update > 0.85 * recipe.coder_updates else (0.5, 16)
        pixels = learning.crops(pictures[torch.randint(len(pictures), (recipe.coder_batch * count // 16,))], part)
        code = coder.encode(pixels).latent_dist.mode()
        shown = coder.decode(code + 0.05 * torch.randn_like(code)).sample
        error = shown - pixels
        loss = error.square().mean() + 0.1 * error.abs().mean() + 1e-4 * code.square().mean()
        step(coder, optimizer, loss, rate(recipe.coder_rate, update, recipe.coder_updates))
        report(update, error.square().mean())
    with torch.no_grad():  # almost no width for the posterior, as published coders have it
        coder.encoder.conv_out.weight[16:] = 0
        coder.encoder.conv_out.bias[16:] = -12
    coder.eval()
    # rounded as it will be saved, so that the denoiser learns the latents which users will see
    coder.half().float()


@torch.no_grad()
def encode(coder: AutoencoderKL, pixels: Tensor) -> Tensor:
    """Encode pictures to raw latents, some at a time."""
    return torch.cat([coder.encode(some).latent_dist.mode() for some in pixels.split(64)])


@torch.no_grad()
def reconstruction(coder: AutoencoderKL, images: list[Image.Image]) -> float:
    """The peak signal-to-noise ratio of pictures that went through the coder, in decibels."""
    pixels = learning.to_pixels(images)
    return learning.psnr(pixels, coder.decode(encode(coder, pixels)).sample)


# Denoiser ------------------------------------------------------------------------------------------------


def make_denoiser() -> FluxTransformer2DModel:
    """Build an untrained denoiser."""
    return FluxTransformer2DModel(
        patch_size=1,
        in_channels=64,
        num_layers=2,
        num_single_layers=4,
        attention_head_dim=32,
        num_attention_heads=3,
        joint_attention_dim=WIDE,
        pooled_projection_dim=WIDE,
        guidance_embeds=True,
        axes_dims_rope=(8, 12, 12),
    )


def make_scheduler() -> FlowMatchEulerDiscreteScheduler:
    """Build the scheduler with the published values of FLUX.1-dev."""
    return FlowMatchEulerDiscreteScheduler(
        num_train_timesteps=1000,
        shift=3.0,
        use_dynamic_shifting=True,
        base_shift=0.5,
        max_shift=1.15,
        base_image_seq_len=256,
        max_image_seq_len=4096,
    )


@dataclass(frozen=True)
class Words:
    """A batch of captions of one length: T5's tokens, the last of them for all padding, and CLIP's pooled answers."""

    hidden: Tensor
    pooled: Tensor

    def __getitem__(self, chosen: Tensor) -> Words:
        return Words(self.hidden[chosen], self.pooled[chosen])


@torch.no_grad()
def encode_caption(pipeline: FluxPipeline, caption: str) -> Words:
    """One caption, its padding told once: the denoiser gives text no places, so equal tokens remain equal."""
    hidden, pooled, _ = pipeline.encode_prompt(caption, caption, max_sequence_length=T5_TOKENS)
    said = len(pipeline.tokenizer_2(caption).input_ids)
    return Words(hidden[:, : said + 1], pooled)


def predict(denoiser: nn.Module, noisy: Tensor, t: Tensor, guidance: Tensor, words: Words, grid: Size) -> Tensor:
    """The denoiser's answer to packed latents; what stands for all padding is attended to as often as it stands."""
    text, tokens = words.hidden.shape[1], noisy.shape[1]
    weight = torch.zeros(text + tokens)
    weight[text - 1] = math.log(T5_TOKENS - (text - 1))
    places = FluxPipeline._prepare_latent_image_ids(1, *grid, torch.device("cpu"), torch.float32)
    answer: Tensor = denoiser(
        hidden_states=noisy,
        timestep=t,
        guidance=guidance,
        pooled_projections=words.pooled,
        encoder_hidden_states=words.hidden,
        txt_ids=torch.zeros(text, 3),
        img_ids=places,
        joint_attention_kwargs={"attention_mask": weight.view(1, 1, 1, -1)},
        return_dict=False,
    )[0]
    return answer


@dataclass(frozen=True)
class Group:
    """Examples of one picture size and one caption length, so that a batch needs neither crop nor mask."""

    grid: Size
    latents: Tensor
    words: Words


def draw_groups(pipeline: FluxPipeline, recipe: Recipe) -> list[Group]:
    """Draw the captioned pictures, measure their latents, and sort them into groups."""
    chance, coder = random.Random(recipe.seed + 1), pipeline.vae
    drawn = learning.draw_scenes(chance, recipe.denoiser_pictures)
    raw = {
        size: encode(coder, learning.to_pixels(scene.draw(chance, size) for scene in scenes))
        for size, scenes in drawn.items()
    }
    middle, spread = raw[SIDE, SIDE].mean().item(), raw[SIDE, SIDE].std().item()
    coder.register_to_config(shift_factor=middle, scaling_factor=1 / spread)
    captions = sorted({scene.caption for scenes in drawn.values() for scene in scenes})
    words = {caption: encode_caption(pipeline, caption) for caption in captions}
    groups = []
    for size, scenes in drawn.items():
        latents = (raw[size] - middle) / spread
        count, channels, height, width = latents.shape
        packed = FluxPipeline._pack_latents(latents, count, channels, height, width)
        for chosen in learning.by_length([words[scene.caption].hidden[0] for scene in scenes]):
            said = [words[scenes[index].caption] for index in chosen]
            together = Words(torch.cat([one.hidden for one in said]), torch.cat([one.pooled for one in said]))
            groups.append(Group((height // 2, width // 2), packed[chosen], together))
    return groups


def train_denoiser(pipeline: FluxPipeline, recipe: Recipe) -> None:
    """Teach the denoiser; the pipeline keeps its moving average after each turn."""
    groups = draw_groups(pipeline, recipe)
    shares = torch.tensor([float(len(group.latents)) for group in groups])
    empty = encode_caption(pipeline, "")[torch.zeros(recipe.denoiser_batch, dtype=torch.long)]
    denoiser = pipeline.transformer
    for name, updates, peak in (
        ("denoiser", recipe.denoiser_updates, recipe.denoiser_rate),
        ("guidance", recipe.guided_updates, recipe.guided_rate),
    ):
        average, teacher = copy.deepcopy(denoiser), copy.deepcopy(denoiser).eval().requires_grad_(False)
        optimizer = torch.optim.AdamW(denoiser.parameters(), betas=(0.9, 0.95), weight_decay=0.01)
        report = Report(name, updates)
        denoiser.train()
        for update in range(updates):
            group = groups[int(torch.multinomial(shares, 1))]
            chosen = torch.randint(len(group.latents), (recipe.denoiser_batch,))
            words = group.words[chosen]
            if name == "guidance":
                loss = guided_loss(denoiser, teacher, group.latents[chosen], words, empty, group.grid)
            else:  # guidance needs to know what a picture without a caption is
                words = empty if update % 10 == 0 else words
                loss = flow_loss(denoiser, group.latents[chosen], words, group.grid)
            step(denoiser, optimizer, loss, rate(peak, update, updates))
            follow(average, denoiser, min(0.998, (1 + update) / (10 + update)))
            report(update, loss)
        denoiser.load_state_dict(average.state_dict())
        denoiser.eval()


def noised(clean: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Noise levels, the noise, and the latents at these levels."""
    t, noise = learning.flow_times(len(clean)), torch.randn_like(clean)
    return t, noise, torch.lerp(clean, noise, t.view(-1, 1, 1))


def flow_loss(denoiser: nn.Module, clean: Tensor, words: Words, grid: Size) -> Tensor:
    """The flow-matching loss, at guidance 1."""
    t, noise, noisy = noised(clean)
    return (predict(denoiser, noisy, t, torch.ones(len(clean)), words, grid) - (noise - clean)).square().mean()


def guided_loss(
    denoiser: nn.Module, teacher: nn.Module, clean: Tensor, words: Words, empty: Words, grid: Size
) -> Tensor:
    """The distance from what classifier-free guidance makes of the teacher (arXiv 2210.03142, section 3.1)."""
    t, _, noisy = noised(clean)
    guidance, one = 1 + (STRONGEST - 1) * torch.rand(len(clean)), torch.ones(len(clean))
    with torch.no_grad():
        told, untold = (predict(teacher, noisy, t, one, said, grid) for said in (words, empty))
        target = untold + guidance.view(-1, 1, 1) * (told - untold)
    return (predict(denoiser, noisy, t, guidance, words, grid) - target).square().mean()


# All of it -----------------------------------------------------------------------------------------------


def make_pipeline(recipe: Recipe, coder: AutoencoderKL) -> FluxPipeline:
    """Put the parts together, the denoiser untrained."""
    tokenizers = learning.clip_tokenizer(), t5_tokenizer()
    torch.manual_seed(recipe.seed)
    return FluxPipeline(
        scheduler=make_scheduler(),
        vae=coder,
        text_encoder=make_clip(tokenizers[0]),
        tokenizer=tokenizers[0],
        text_encoder_2=make_t5(tokenizers[1]),
        tokenizer_2=tokenizers[1],
        transformer=make_denoiser(),
    )


def save(pipeline: FluxPipeline, folder: Path) -> None:
    """Write the folder in half precision, readable for everybody."""
    copy.deepcopy(pipeline).to(torch.float16).save_pretrained(folder)
    learning.readable(folder)


def examine(folder: Path, seeds: Iterable[int] = (1,)) -> dict[str, object]:
    """Load the folder as users do, ask for every colour and shape, and say how many pictures are right."""
    pipeline = FluxPipeline.from_pretrained(folder, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    scenes, concept = learning.exam_pictures()
    found: dict[str, object] = {
        "size_mb": learning.size_mb(folder),
        "psnr_scenes": round(reconstruction(pipeline.vae, scenes), 1),
        "psnr_concept": round(reconstruction(pipeline.vae, concept), 1),
    }
    plain = shapes.plain_scenes()
    for seed in seeds:
        images = sample(pipeline, [scene.caption for scene in plain], seed)
        found[f"accuracy_seed_{seed}"] = round(shapes.accuracy(images, plain), 3)
    return found


def sample(
    pipeline: FluxPipeline, captions: list[str], seed: int, size: Size = (SIDE, SIDE), guidance: float = 3.5
) -> list[Image.Image]:
    """Make one picture of each caption."""
    images: list[Image.Image] = pipeline(
        captions,
        guidance_scale=guidance,
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
    parser.add_argument("--guided-updates", type=int, default=recipe.guided_updates)
    parser.add_argument("--coder", type=Path, help="take the image coder of this toy folder, as it is")
    given = parser.parse_args()
    recipe = Recipe(
        coder_updates=given.coder_updates,
        denoiser_updates=given.denoiser_updates,
        guided_updates=given.guided_updates,
    )
    torch.set_num_threads(1)  # so that sums are taken in one order
    torch.manual_seed(recipe.seed)
    if given.coder:
        coder = AutoencoderKL.from_pretrained(given.coder / "vae", dtype=torch.float32)
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
