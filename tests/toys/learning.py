"""What the scripts that train toy models share: the words and pictures of their world, and how updates are made.

The world itself, and its judge, is `lorakit.testing.shapes`.
"""

from __future__ import annotations

import json
import math
import random
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import CLIPTokenizer

from lorakit.testing import examples, shapes

Size = tuple[int, int]
SIDE = shapes.SIDE
SIZES: dict[Size, float] = {(SIDE, SIDE): 0.7, (SIDE + 16, SIDE - 16): 0.15, (SIDE - 16, SIDE + 16): 0.15}
CODER_SIDE = 64  # more than the denoiser's, so that the smallest shapes are sharp too

# Words ---------------------------------------------------------------------------------------------------

WORDS = """
    a an the of in on at and with it its small large big tiny left right top bottom center middle
    background red orange yellow green cyan blue purple white black gray magenta pink brown color
    circle square triangle cross diamond star ring face smile shape dot heart line
    sks ohwx zwx xyz lora concept style character person man woman dog cat toy photo picture image drawing
    portrait smiling happy full body standing high quality low blurry photorealistic artifacts
    Picture make turn change into remove add instead replace move to from
""".split()  # noqa: SIM905 - a table of words reads better as words


def sentences() -> Iterator[str]:
    """Rows of the words, for tokenizers to learn from."""
    chance = random.Random(0)
    for _ in range(2000):
        yield " ".join(chance.sample(WORDS, 8))
        yield ", ".join(chance.sample(WORDS, 4))


def clip_tokenizer(vocabulary: int = 1000) -> CLIPTokenizer:
    """CLIP's tokenizer, in which every known word is one token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    draft = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    draft.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    pattern = Regex(r"""'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+""")
    draft.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(pattern, behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, show_progress=False, end_of_word_suffix="</w>", initial_alphabet=alphabet
    )
    draft.train_from_iterator(sentences(), trainer)
    merges = [tuple(merge) for merge in json.loads(draft.to_str())["model"]["merges"]]
    # the published order: bytes, bytes that end a word, merges, start, end; the encoder finds the end as the largest
    tokens = dict.fromkeys([*alphabet, *(f"{byte}</w>" for byte in alphabet), *(one + two for one, two in merges)])
    tokens |= dict.fromkeys(["<|startoftext|>", "<|endoftext|>"])
    vocab = {token: number for number, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocab, merges=merges, pad_token="<|endoftext|>", model_max_length=77)


# Pictures ------------------------------------------------------------------------------------------------


def to_pixels(images: Iterable[Image.Image]) -> Tensor:
    """Stack pictures of one size as (B, 3, H, W) in -1..1."""
    stack = torch.from_numpy(np.stack([np.asarray(image) for image in images]))
    return stack.permute(0, 3, 1, 2).float() / 127.5 - 1


def coder_pictures(chance: random.Random, count: int) -> list[Image.Image]:
    """What an image coder learns to show: scenes and any other pictures, half of each."""
    size = (CODER_SIDE, CODER_SIDE)
    scenes = [shapes.random_scene(chance).draw(chance, size) for _ in range(count // 2)]
    return scenes + [shapes.random_picture(chance, size) for _ in range(count // 2)]


def crops(pictures: Tensor, part: float) -> Tensor:
    """The same part of every picture, its place drawn at random."""
    side = int(pictures.shape[-1] * part)
    top, left = (int(torch.randint(pictures.shape[-1] - side + 1, ())) for _ in range(2))
    return pictures[..., top : top + side, left : left + side]


def draw_scenes(chance: random.Random, count: int) -> dict[Size, list[shapes.Scene]]:
    """Captioned scenes for a denoiser, by the size of picture that they are drawn at."""
    return {size: [shapes.random_scene(chance) for _ in range(int(part * count))] for size, part in SIZES.items()}


def exam_pictures() -> tuple[list[Image.Image], list[Image.Image]]:
    """A drawing of every plain scene, and the pictures of the concept, that tell how well a coder shows things."""
    chance = random.Random(99)
    concept = [example.image.resize((SIDE, SIDE), Image.Resampling.BOX) for example in examples.concept_examples()]
    return [scene.draw(chance) for scene in shapes.plain_scenes()], concept


def psnr(pixels: Tensor, shown: Tensor) -> float:
    """The peak signal-to-noise ratio of what is shown, in decibels."""
    return 10 * math.log10(4 / (shown.clamp(-1, 1) - pixels).square().mean().item())


def size_mb(folder: Path) -> float:
    """The size of a folder."""
    return round(sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6, 2)


def readable(folder: Path) -> None:
    """Let everybody read a folder: safetensors writes files that only the owner can."""
    for path in folder.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)


# Learning ------------------------------------------------------------------------------------------------


def by_length(texts: Sequence[Tensor]) -> list[list[int]]:
    """The texts' indices, those of one length together."""
    found: dict[int, list[int]] = defaultdict(list)
    for index, text in enumerate(texts):
        found[len(text)].append(index)
    return list(found.values())


def flow_times(count: int) -> Tensor:
    """Noise levels to learn at; half of them are uniform, half are drawn to the middle."""
    uniform, middle = torch.rand(count), torch.randn(count).sigmoid()
    return torch.where(torch.arange(count) % 2 == 0, uniform, middle).clamp(1e-3, 1)


def rate(peak: float, update: int, updates: int) -> float:
    """A short rise, then a cosine down to a hundredth."""
    rise = min(1.0, (update + 1) / 50)
    return peak * rise * (0.01 + 0.99 * (0.5 + 0.5 * math.cos(math.pi * update / updates)))


def step(model: nn.Module, optimizer: torch.optim.Optimizer, loss: Tensor, learning_rate: float) -> None:
    """One update."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()


@torch.no_grad()
def follow(average: nn.Module, model: nn.Module, keep: float) -> None:
    """Move a running average a little towards the model."""
    for slow, fast in zip(average.parameters(), model.parameters(), strict=True):
        slow.lerp_(fast, 1 - keep)


class Report:
    """Prints the mean loss now and then."""

    def __init__(self, name: str, updates: int, every: int = 100) -> None:
        self.name, self.updates, self.every = name, updates, every
        self.losses: list[float] = []
        self.start = time.perf_counter()

    def __call__(self, update: int, loss: Tensor) -> None:
        """Note one loss, and print the mean of the latest ones when it is time."""
        self.losses.append(loss.item())
        if (update + 1) % self.every == 0:
            mean = float(np.mean(self.losses[-self.every :]))
            seconds = time.perf_counter() - self.start
            print(f"{self.name} {update + 1}/{self.updates}: {mean:.5f}, {seconds:.0f} s", flush=True)
