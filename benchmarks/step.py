"""What an update costs beside a bare loop: `python benchmarks/step.py`, and `python benchmarks/step.py A B` for some.

Three loops train one toy Qwen-Image transformer on the same pictures, in the same order, with the same noise and the
same starting adapter, in one process, stepped in turn on one thread:

- the floor: a bare torch loop, a hand-written LoRA, AdamW in one kernel, everything that training is made of at hand;
- diffusers: the calls of its example script, in its order, with peft and accelerate;
- lorakit: a whole run as `lorakit train` makes it, its checks, alarms and journal included.

Model A is 4 blocks of width 256 and 288 tokens, which computes; model B is 60 narrow blocks, which only keeps Python
busy. Figures are CPU time, as the least and the median of many updates, and their ratio to the floor's. `B compiled` is
lorakit with `speed.compile = "blocks"` against the same floor. It fails where losses differ.
"""

from __future__ import annotations

import gc
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import accelerate
import diffusers
import peft
import torch
from diffusers import QwenImageTransformer2DModel
from diffusers.training_utils import compute_density_for_timestep_sampling, compute_loss_weighting_for_sd3
from torch import Tensor, nn
from torch.nn import functional

from lorakit import Kit, Plan
from lorakit.control import Control
from lorakit.engine.adapter import attach
from lorakit.engine.cache import Cache
from lorakit.engine.draws import draw
from lorakit.engine.material import gather
from lorakit.engine.objective import make_scheduler
from lorakit.engine.phases import Context, Work
from lorakit.engine.source import cache_folder, locate
from lorakit.engine.tokens import pack, unpack
from lorakit.events import UpdateFinished
from lorakit.order import turns
from lorakit.testing import shapes

NAMES = ("to_q", "to_k", "to_v", "to_out.0")
RATE = 1e-4
CAPTION = "a small red circle at the bottom on a white ground beside a large blue star at the top"
CLOSE = 1e-5  # largest relative difference of losses
WARMING = 3
SORTING = 2048  # numbers: more than glibc has at hand without looking through what was freed
KIT = Kit()


@dataclass(frozen=True)
class Model:
    """A transformer, the side of its pictures, and how many updates are measured."""

    layers: int
    heads: int
    head: int
    axes: tuple[int, int, int]
    side: int
    rank: int
    updates: int
    compiled: bool = False

    def save(self, folder: Path) -> None:
        """Put it into a model folder."""
        torch.manual_seed(1)
        made = QwenImageTransformer2DModel(
            num_layers=self.layers,
            attention_head_dim=self.head,
            num_attention_heads=self.heads,
            joint_attention_dim=64,
            axes_dims_rope=self.axes,
        )
        shutil.rmtree(folder / "transformer")
        made.save_pretrained(folder / "transformer")


MODELS = {
    "A": Model(4, 8, 32, (8, 12, 12), 128, 16, 40),
    "B": Model(60, 2, 16, (4, 6, 6), 32, 4, 40),
    "B compiled": Model(60, 2, 16, (4, 6, 6), 32, 4, 40, compiled=True),
}


# -- what all loops are given ------------------------------------------------------------------------------------


@dataclass
class Given:
    """Pictures, texts, noise and levels of every update, made ahead, and the adapter's start by layer."""

    folder: Path
    rank: int
    start: dict[str, Tensor] = field(default_factory=dict)
    clean: list[Tensor] = field(default_factory=list)
    text: list[Tensor] = field(default_factory=list)
    noise: list[Tensor] = field(default_factory=list)
    level: list[Tensor] = field(default_factory=list)


def planned(name: str, room: Path) -> Plan:
    """The plan of lorakit's run over a model that is made for it."""
    model = MODELS[name]
    folder, pictures = room / name / "model", room / name / "pictures"
    KIT.shelves.families["qwen"].toy(folder, "image")
    drawn(pictures, model.side)
    model.save(folder)
    every = {"every": 0}
    return KIT.plan(
        {
            "family": "qwen",
            "preset": "none",
            "name": "run",
            "trigger": "sks",
            "output": str(room / name / "runs"),
            "model": {"source": str(folder), "device": "cpu"},
            "data": [{"folder": str(pictures)}],
            "lora": {"rank": model.rank, "alpha": float(model.rank), "targets": [f"attn.{name}" for name in NAMES]},
            "optimizer": {"learning_rate": RATE},
            "train": {
                "updates": model.updates + WARMING,
                "resolution": model.side,
                "precision": "fp32",
                "gradient_checkpointing": False,
                "caption_dropout": 0,
            },
            "quantization": {"name": "none"},
            "sampling": {"prompts": [], "every": 0, "strengths": []},
            "validation": {"pictures": 0, "every": 0},
            "save": every,
            **({"speed": {"compile": "blocks"}} if model.compiled else {}),
        }
    )


def drawn(folder: Path, side: int) -> None:
    """Eight pictures with captions."""
    folder.mkdir(parents=True)
    chance = random.Random(3)
    for number in range(8):
        shapes.random_picture(chance, (side, side)).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"{CAPTION}, number {number}")


def given(plan: Plan) -> Given:
    """What the other loops need so that they train the same."""
    family = KIT.shelves.families["qwen"]
    place = Cache(cache_folder(plan))
    context = Context(plan, family, KIT.shelves, locate(plan, family), place, torch.device("cpu"), Control())
    scheduler, material = make_scheduler(context), ended(gather(context))
    settings = plan.settings
    found = Given(folder=context.source.folder, rank=settings.lora.rank)
    denoiser = family.denoiser(plan, context.source)
    adapter = attach(denoiser, settings.lora, settings.seed, context.device)
    prefix = f"{denoiser.component}."
    found.start = {name.removeprefix(prefix): one.lora_A.detach() for name, one in adapter.layers.items()}
    for (turn,) in turns(material.dataset, settings.train, settings.seed):
        item = material.item(turn.samples[0])
        chance = draw(settings.seed, turn.first_pass, tuple(item.latents.shape))
        tokens = item.latents.shape[-1] * item.latents.shape[-2] // family.patch**2
        found.clean.append(item.latents[None])
        found.text.append(item.text.hidden)
        found.noise.append(chance.noise[None])
        found.level.append(scheduler.level(chance.level[None], tokens))
    return found


def ended(work: Work[Any]) -> Any:
    """The answer of a phase."""
    while True:
        try:
            next(work)
        except StopIteration as end:
            return end.value


# -- the loops: each makes one update whenever it is asked for the next loss ---------------------------------------


class Hand(nn.Module):
    """A linear layer with a LoRA, as one writes it by hand."""

    def __init__(self, base: nn.Linear, start: Tensor) -> None:
        super().__init__()
        self.base, self.a = base, nn.Parameter(start.clone())
        self.b = nn.Parameter(torch.zeros(base.out_features, start.shape[0]))

    def forward(self, x: Tensor) -> Tensor:
        """The layer's answer and the adapter's; the scale is 1."""
        return self.base(x) + functional.linear(functional.linear(x, self.a), self.b)


def floor(given: Given) -> Iterator[float]:
    """The bare loop."""
    model = QwenImageTransformer2DModel.from_pretrained(given.folder / "transformer").requires_grad_(False).train()
    adapters = [Hand(model.get_submodule(name), start) for name, start in given.start.items()]
    for name, adapter in zip(given.start, adapters, strict=True):
        model.set_submodule(name, adapter)
    weights = [half for one in adapters for half in (one.a, one.b)]
    optimizer = torch.optim.AdamW(weights, lr=RATE, weight_decay=1e-4, fused=True)
    for clean, text, noise, t in zip(given.clean, given.text, given.noise, given.level, strict=True):
        height, width = clean.shape[-2:]
        answer = model(
            hidden_states=pack(torch.lerp(clean, noise, t.view(-1, 1, 1, 1))),
            timestep=t,
            encoder_hidden_states=text,
            img_shapes=[[(1, height // 2, width // 2)]],
            return_dict=False,
        )[0]
        loss = functional.mse_loss(unpack(answer, height, width), noise - clean)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        yield loss.item()


def example(given: Given) -> Iterator[float]:
    """The calls of diffusers' examples/dreambooth/train_dreambooth_lora_qwen_image.py, latents and text cached."""
    accelerator = accelerate.Accelerator(cpu=True)
    model = QwenImageTransformer2DModel.from_pretrained(given.folder / "transformer").requires_grad_(False)
    config = peft.LoraConfig(r=given.rank, lora_alpha=given.rank, init_lora_weights=True, target_modules=list(NAMES))
    model.add_adapter(config)
    for name, start in given.start.items():
        model.get_submodule(name).lora_A["default"].weight.data.copy_(start)
    weights = [one for one in model.parameters() if one.requires_grad]
    optimizer = torch.optim.AdamW(
        [{"params": weights, "lr": RATE}], betas=(0.9, 0.999), weight_decay=1e-4, eps=1e-8
    )  # with the numbers that lorakit has by default
    rate = diffusers.optimization.get_scheduler("constant", optimizer=optimizer)
    model, optimizer, rate = accelerator.prepare(model, optimizer, rate)
    levels = diffusers.FlowMatchEulerDiscreteScheduler()
    model.train()
    for clean, text, noise, t in zip(given.clean, given.text, given.noise, given.level, strict=True):
        with accelerator.accumulate([model]):
            torch.randn_like(clean)  # what the script draws; the numbers that it goes on with are everybody's
            u = compute_density_for_timestep_sampling("none", len(clean), 0.0, 1.0, 1.29)
            times = levels.timesteps[(u * levels.config.num_train_timesteps).long()]
            [(levels.timesteps == time).nonzero().item() for time in times]
            noisy = (1.0 - t.view(-1, 1, 1, 1)) * clean + t.view(-1, 1, 1, 1) * noise
            height, width = clean.shape[-2:]
            answer = model(
                hidden_states=pack(noisy),
                encoder_hidden_states=text,
                encoder_hidden_states_mask=None,
                timestep=t,
                img_shapes=[[(1, height // 2, width // 2)]] * len(clean),
                return_dict=False,
            )[0]
            answer = unpack(answer, height, width)
            weighting = compute_loss_weighting_for_sd3("none", t)
            error = weighting.view(-1, 1, 1, 1).float() * (answer.float() - (noise - clean).float()) ** 2
            loss = torch.mean(error.reshape(len(clean), -1), 1).mean()
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            rate.step()
            optimizer.zero_grad()
        logs = {"loss": loss.detach().item(), "lr": rate.get_last_lr()[0]}
        accelerator.log(logs, step=0)
        yield logs["loss"]


def lorakit(plan: Plan) -> Iterator[float]:
    """A run as `lorakit train` makes it; its first loss is told when everything before training is done."""
    for event in KIT.train(plan):
        if isinstance(event, UpdateFinished):
            yield event.loss


# -- measuring -----------------------------------------------------------------------------------------------------


@dataclass
class Clock:
    """CPU seconds of a loop's updates, and those of them inside the model's forward pass and the backward pass."""

    inside: float = 0.0
    whole: list[float] = field(default_factory=list)
    outside: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)

    def step(self, loop: Iterator[float]) -> None:
        """Let the loop make one update."""
        self.inside, began = 0.0, time.process_time()
        self.losses.append(next(loop))
        self.whole.append(time.process_time() - began)
        self.outside.append(self.whole[-1] - self.inside)


@contextmanager
def counted(now: list[Clock]) -> Iterator[None]:
    """For a while, forward and backward passes count on the clock that is the last of `now`."""
    kinds: list[tuple[Any, str]] = [(QwenImageTransformer2DModel, "forward"), (Tensor, "backward")]
    plain = [getattr(kind, name) for kind, name in kinds]

    def on_clock(work: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            began = time.process_time()
            answer = work(*args, **kwargs)
            if answer is None:
                args[0].detach_()  # a backward pass ends when its graph is freed,
                torch.empty(SORTING)  # and when the allocator has put away what was freed, as it does at the next call
            now[-1].inside += time.process_time() - began
            return answer

        return call

    try:
        for (kind, name), work in zip(kinds, plain, strict=True):
            setattr(kind, name, on_clock(work))
        yield
    finally:
        for (kind, name), work in zip(kinds, plain, strict=True):
            setattr(kind, name, work)


def measured(name: str, room: Path) -> dict[str, Clock]:
    """The clocks of the three loops over a model."""
    plan = planned(name, room)
    shown = given(plan)
    loops = {"floor": floor(shown), "diffusers": example(shown), "lorakit": lorakit(plan)}
    clocks = {one: Clock() for one in loops}
    with counted(now := []):
        for number, _ in enumerate(shown.clean):
            if number == WARMING:  # as `lorakit train` does; one loop would pay for what others leave to be collected
                gc.collect()
                gc.freeze()
            for one, loop in loops.items():
                now.append(clocks[one])
                clocks[one].step(loop)
    gc.unfreeze()
    for one, clock in clocks.items():
        apart = max(abs(loss / best - 1) for loss, best in zip(clock.losses, clocks["floor"].losses, strict=True))
        if apart > CLOSE:
            raise SystemExit(f"model {name}: the losses of {one} are {apart:.1e} apart from the floor's")
    return clocks


def main(names: list[str]) -> None:
    """Measure and print a table."""
    torch.set_num_threads(1)
    ratio, outside = f"{'ratio, least':>14}{'median':>8}", f"{'outside, least':>16}{'median':>8}"
    print(f"{'ms of CPU time':24}{'least':>9}{'median':>9}{ratio}{outside}")
    with tempfile.TemporaryDirectory() as place:
        for name in names:
            clocks = measured(name, Path(place))
            best = clocks["floor"].whole[WARMING:]
            for one, clock in clocks.items():
                whole, apart = clock.whole[WARMING:], clock.outside[WARMING:]
                ratios = f"{min(whole) / min(best):14.3f}{median(whole) / median(best):8.3f}"
                times = f"{1e3 * min(whole):9.1f}{1e3 * median(whole):9.1f}"
                rest = f"{1e3 * min(apart):16.2f}{1e3 * median(apart):8.2f}"
                print(f"{name + ', ' + one:24}{times}{ratios}{rest}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:] or list(MODELS))
