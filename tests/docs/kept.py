"""What the pages' command lines name, made small: configurations, pictures, a run, LoRA files, models."""

from __future__ import annotations

import shutil
from functools import cached_property
from pathlib import Path
from typing import Any

from lorakit import Kit
from lorakit.control import Control
from lorakit.events import RunStopped, UpdateFinished
from tests.pictures import scene

RUN, NAME = Path("runs", "maya_char"), "maya_char"
SMALL = {
    "train": {"updates": 1, "accumulation": 1, "precision": "fp32"},
    "sampling": {"prompts": ["maya_char"], "width": 64, "height": 64, "steps": 2, "strengths": [1]},
    "validation": {"every": 0},
}
"""What makes a training short, whatever its family and preset."""
RUN_TOML = """\
family = "qwen"
preset = "toy"
trigger = "maya_char"

[[data]]
folder = "pictures"
"""
KOHYA_SCRIPT = """\
accelerate launch src/musubi_tuner/qwen_image_train_network.py \\
  --dit models/qwen_image_bf16.safetensors --dataset_config dataset.toml --network_module networks.lora_qwen_image \\
  --network_dim 16 --network_alpha 16 --max_train_steps 800 --learning_rate 1e-4 --output_name maya_char
"""
DIFFUSERS_SCRIPT = """\
export MODEL_NAME="Qwen/Qwen-Image"
accelerate launch train_dreambooth_lora_qwen_image.py --pretrained_model_name_or_path=$MODEL_NAME \\
  --instance_data_dir=pictures --instance_prompt="maya_char" --max_train_steps=500 --rank=16
"""
ARGUMENTS = """\
pretrained_model_name_or_path = "stabilityai/stable-diffusion-xl-base-1.0"
network_module = "networks.lora"
network_dim = 16
network_alpha = 8
max_train_steps = 800
"""
DATASET = """\
[general]
resolution = 1024
caption_extension = ".txt"

[[datasets]]
[[datasets.subsets]]
image_dir = "pictures"
num_repeats = 4
"""
TEXTS = {
    "train.sh": KOHYA_SCRIPT,
    "dreambooth.sh": DIFFUSERS_SCRIPT,
    "arguments.toml": ARGUMENTS,
    "dataset.toml": DATASET,
    "settings.old": "size=8\nspeed=1e-4\n",
}


class Kept:
    """What takes long to make, made once for all pages, where one names it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @cached_property
    def hub(self) -> Path:
        """A cache of the model hub in which the toys lie under the names of the published models."""
        for family in Kit().shelves.families.values():
            source = family.variants[family.default_variant].source
            model = self.folder / "hub" / f"models--{source.replace('/', '--')}"
            (model / "snapshots" / "toy").mkdir(parents=True)
            family.toy(model / "snapshots" / "toy", family.default_variant)
            (model / "refs").mkdir()
            (model / "refs" / "main").write_text("toy")
        return self.folder / "hub"

    @cached_property
    def run(self) -> Path:
        """A run of the toy that was stopped after two of its three updates, with a checkpoint of each."""
        place, control, kit = self.folder / "trained", Control(), Kit()
        fill(place / "pictures", 6)
        asked = {
            **asked_of_toy(place, updates=3),
            "save": {"every": 1},
            "sampling": {**SMALL["sampling"], "every": 1},
            "validation": {"pictures": 1, "every": 1},
        }
        for event in kit.train(kit.plan(asked), control):
            if isinstance(event, UpdateFinished) and event.update == 2:
                control.stop("to go on")
        assert isinstance(event, RunStopped)
        return place / RUN

    @cached_property
    def judges(self) -> Path:
        """A folder of judges, under the names of published ones."""
        from tests.evidence import toys

        toys.dinov2(self.folder / "models" / "dinov2-base")
        toys.clip(self.folder / "models" / "clip-vit-large-patch14")
        return self.folder / "models"

    @cached_property
    def files(self) -> Path:
        """LoRA files: one that lorakit made, one of chance, one by another tool's names, and a whole SDXL."""
        from tests.engine.lora_files import made, write
        from tests.plugins.sdxl import single_file

        families, place = Kit().shelves.families, self.folder / "files"
        place.mkdir()
        (newest,) = self.run.glob("checkpoints/update-000002/maya_char-*.safetensors")
        shutil.copy(newest, place / "maya_char.safetensors")
        write(place / "style.safetensors", families["qwen"], made(families["qwen"], seed=1))
        write(place / "foreign.safetensors", families["qwen"], made(families["qwen"], seed=2), "comfyui")
        families["sdxl"].toy(place / "sdxl_base", "base")
        single_file.write(place / "sdxl_base", place / "tune.safetensors")
        return place


def asked_of_toy(place: Path, updates: int) -> dict[str, Any]:
    """A short training of the toy on the pictures of a folder."""
    return {
        "family": "qwen",
        "preset": "toy",
        "trigger": NAME,
        "output": str(place / "runs"),
        "data": [{"folder": str(place / "pictures")}],
        **SMALL,
        "train": {**SMALL["train"], "updates": updates, "batch_size": 1},
        "lora": {"rank": 4},
    }


def fill(folder: Path, count: int) -> None:
    """Write captioned pictures, no two alike."""
    folder.mkdir(parents=True)
    for number in range(count):
        scene(number, (64, 64)).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"maya_char in room {number}, standing", encoding="utf-8")
