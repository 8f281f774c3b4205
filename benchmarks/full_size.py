"""Models of full size without their files: published configurations, and weights from one pool of random numbers.

Nothing is downloaded, and nothing is zero.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

LEARNED = ("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0")


@dataclass(frozen=True)
class Subject:
    """A model at its full size: its variant, the denoiser's configuration, what its text is like."""

    family: str
    variant: str
    config: dict[str, Any] = field(default_factory=dict)
    targets: tuple[str, ...] = LEARNED
    tokens: int = 64
    width: int = 3584
    pooled: int = 0
    references: int = 0
    side: int = 1024


UNET = {
    "sample_size": 128,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "cross_attention_dim": 2048,
    "attention_head_dim": (5, 10, 20),
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
    "use_linear_projection": True,
}
SUBJECTS = {
    "qwen": Subject("qwen", "image"),
    "edit": Subject("qwen", "edit-2509", tokens=266, references=1),
    "edit with 3 references": Subject("qwen", "edit-2509", tokens=670, references=3),
    "flux": Subject("flux", "dev", {"guidance_embeds": True}, tokens=512, width=4096, pooled=768),
    "sdxl": Subject("sdxl", "base", UNET, ("to_q", "to_k", "to_v", "to_out.0"), 77, 2048, 1280),
    "qwen at 512": Subject("qwen", "image", side=512),
}


class Pool:
    """Stands for a component's files: every tensor is a part of one pool of random numbers, by its name."""

    size = 1 << 26

    def __init__(self, folder: Path, of: str) -> None:
        import torch

        self.folder, self._of = folder, of
        self._numbers = torch.randn(self.size, generator=torch.Generator().manual_seed(0)).bfloat16()
        self.shapes: dict[str, list[int]] = json.loads((folder / "shapes.json").read_text(encoding="utf-8"))

    def read(self, names: Iterable[str], rows: int | None = None) -> Iterator[tuple[str, Any]]:
        """Numbers that keep activations near 1: weights of a matrix by their inputs, scales near 1, biases small."""
        import torch

        for name in names:
            shape = self.shapes[name]
            count = 1
            for side in shape:
                count *= side
            start = hash(tuple(name.encode())) % 4096
            whole = self._numbers[start : self.size - 4096 + start]
            own = whole[:count] if count <= len(whole) else whole.repeat(-(-count // len(whole)))[:count]
            values = own.view(shape).clone()
            if len(shape) > 1:
                values *= (count // shape[0]) ** -0.5
            elif name.endswith("weight"):
                values = torch.ones_like(values)
            else:
                values *= 0.01
            yield name, values

    def fingerprint(self) -> str:
        """Nothing else has these weights."""
        return "random"


def planned(subject: Subject, room: Path, settings: dict[str, Any], tiny: bool) -> Any:
    """The plan of a run over one picture, on a folder that has the denoiser's configuration at full size."""
    import torch
    from PIL import Image

    from lorakit import Kit

    kit = Kit()
    family = kit.shelves.families[subject.family]
    folder, pictures = room / "model", room / "pictures"
    family.toy(folder, subject.variant)
    component = next(name for name in ("transformer", "unet") if (folder / name).is_dir())
    shapes_of(folder / component, subject, tiny)
    side = 64 if tiny else subject.side
    pictures.mkdir()
    Image.new("RGB", (side, side), "teal").save(pictures / "0.png")
    cuda = torch.cuda.is_available()
    asked: dict[str, Any] = {
        "family": subject.family,
        "variant": subject.variant,
        "preset": "none",
        "name": "run",
        "trigger": "sks",
        "output": str(room / "runs"),
        "model": {"source": str(folder), "device": "cuda" if cuda else "cpu"},
        "data": [{"folder": str(pictures), "captions": "none"}],
        "lora": {"rank": 16, "alpha": 16.0, "targets": list(subject.targets)},
        "optimizer": {"learning_rate": 1e-4},
        "train": {
            "updates": 3,
            "resolution": side,
            "precision": "bf16",
            "gradient_checkpointing": True,
            "accumulation": 1,
            "caption_dropout": 0,
        },
        "quantization": {"name": "none", "cache": False},
        "sampling": {"prompts": [], "every": 0, "strengths": []},
        "validation": {"pictures": 0, "every": 0},
        "save": {"every": 0},
    }
    for name, value in settings.items():
        asked[name] = {**asked.get(name, {}), **value} if isinstance(value, dict) else value
    return kit, kit.plan(asked)


def shapes_of(folder: Path, subject: Subject, tiny: bool) -> None:
    """Put the configuration of full size into a component's folder, with the shapes of its tensors instead of files."""
    import diffusers
    import torch

    file = folder / "config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    kind = getattr(diffusers, config["_class_name"])
    if not tiny:
        config = {"_class_name": config["_class_name"], **subject.config}
        file.write_text(json.dumps(config), encoding="utf-8")
    with torch.device("meta"):
        made = kind.from_config(config)
    shapes = {name: list(one.shape) for name, one in made.state_dict().items()}
    (folder / "shapes.json").write_text(json.dumps(shapes), encoding="utf-8")


def item(subject: Subject, tiny: bool, config: dict[str, Any], channels: int) -> Any:
    """A picture's latents with text, as the cache would give them."""
    import torch

    from lorakit.engine.parts import Text
    from lorakit.engine.preparing import Item

    draws = torch.Generator().manual_seed(1)
    side = (64 if tiny else subject.side) // 8
    width = config.get("joint_attention_dim") or config.get("cross_attention_dim") if tiny else subject.width
    pooled = config.get("pooled_projection_dim") if tiny else subject.pooled
    if tiny and subject.pooled and not pooled:  # of an UNet, what its size conditioning leaves
        pooled = config["projection_class_embeddings_input_dim"] - 6 * config["addition_time_embed_dim"]
    tokens = 16 if tiny else subject.tokens

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=draws)

    text = Text(random(1, tokens, int(width or 0)), (tokens,), random(1, int(pooled)) if subject.pooled else None)
    seen = tuple(random(channels, side, side) for _ in range(subject.references))
    return Item(
        random(channels, side, side), text, references=seen, sizes=(side * 8, side * 8, 0, 0, side * 8, side * 8)
    )


def channels_of(plan: Any, source: Any) -> int:
    """Channels of the latents, by the image coder's configuration."""
    table = json.loads((source.folder / "vae" / "config.json").read_text(encoding="utf-8"))
    return int(table.get("z_dim") or table["latent_channels"])
