"""What products in 8 bits cost in quality, on the toy: `python benchmarks/int8_fast.py`; `--updates 20` is quicker.

Held against full precision in fp32, layers having chosen by their first batch as in a run:

1. the relative error of each kind of layer, forward and backward, on inputs and gradients of the full model over all
   noise levels;
2. the cosine of the adapter's gradient with that of the full model, over the same noise levels (0.998 is asked for);
3. the loss on pictures held out, with the same noise for all, of a LoRA that was taught on it and of one taught on the
   full model, each on the base that it was taught on, and both on the full one.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from quantization import KIT, context, error, result, scenes
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from lorakit.engine.adapter import Adapter
from lorakit.engine.faster import Faster
from lorakit.engine.int8_fast import FEW, Int8FastLinear
from lorakit.engine.loading import Model, load_model
from lorakit.engine.loop import Samples, Trainer
from lorakit.engine.material import Material, gather
from lorakit.engine.objective import make_scheduler
from lorakit.events import PhaseFinished
from lorakit.order import Turn, turns
from lorakit.plan import Plan
from lorakit.testing.examples import concept_examples

SHOWN, BATCH = 32, 4  # pictures of the toy's world, and how many at once
TAUGHT, AGAIN = 12, 12  # pictures of the concept, and as many held out; noises that each of those is tried with
LEAST = 0.998
FAR = 10_000  # a pass that training does not come to, whose draws are its own


@dataclass(frozen=True, slots=True)
class Made:
    """A model as a run of a plan has it before its first update, and what it is shown."""

    plan: Plan
    model: Model
    trainer: Trainer
    material: Material


def made(room: Path, pictures: Path, name: str, updates: int, seed: int = 0) -> Made:
    """The toy with a base in full precision (`none`), or in 8 bits."""
    asked = {"family": "qwen", "preset": "toy", "trigger": "x", "output": str(room / "runs"), "seed": seed}
    tables = {
        "data": [{"folder": str(pictures)}],
        "model": {"source": "toy", "device": "cpu"},
        "train": {"updates": updates, "batch_size": BATCH},
        "validation": {"pictures": 0},
        "speed": {"modulation": "layers", "adapter": "plain"},
        "quantization": {"name": name},
    }
    plan = KIT.plan({**asked, **tables})
    about = context(plan)
    material, model = result(gather(about)), result(load_model(about))
    part = KIT.shelves.optimizers[plan.settings.optimizer.name]
    optimizer = part.resolve()([one.group for one in model.adapter.parts], plan.settings.optimizer)
    scheduler, patch = make_scheduler(about), about.family.patch
    trainer = Trainer(plan, model.denoiser, model.adapter, scheduler, optimizer, patch, torch.float32)
    for event in Faster(about, material.dataset, model, part).begin(trainer, material.item):
        if isinstance(event, PhaseFinished):
            print(f"{name}: {event.note}", flush=True)
    return Made(plan, model, trainer, material)


def layers(blocks: Any) -> Iterator[tuple[str, nn.Module]]:
    """The frozen linear layers of the blocks, each with the name of its kind."""
    for block in blocks:
        for name, module in block.named_modules():
            if type(module) is nn.Linear or isinstance(module, Int8FastLinear):
                yield name.replace(".base", ""), module


def passes(one: Made) -> Iterator[Tensor]:
    """The loss of each batch of the pictures, at noise that is the same for every model."""
    for first in range(0, SHOWN, BATCH):
        one.model.adapter.grad.zero_()
        loss = one.trainer.loss(Turn(tuple(range(first, first + BATCH)), FAR + first, 0), one.material.item).mean()
        loss.backward()  # type: ignore[no-untyped-call]
        yield loss


def stirred(adapter: Adapter) -> None:
    """Weights that are not zero, as after some updates."""
    adapter.flat.data.normal_(std=0.02, generator=torch.Generator().manual_seed(1))


def compare_layers(full: Made, fast: Made) -> None:
    """Print the errors of each kind of layer and the cosines of the adapter's gradient."""
    seen: dict[nn.Module, list[Tensor]] = defaultdict(list)
    came: dict[nn.Module, list[Tensor]] = defaultdict(list)
    pairs = list(zip(layers(full.model.denoiser.blocks), layers(fast.model.denoiser.blocks), strict=True))
    hooks = []
    for (_, linear), _ in pairs:
        hooks.append(linear.register_forward_hook(lambda own, x, answer: seen[own].append(x[0].detach())))
        hooks.append(linear.register_full_backward_hook(lambda own, back, grad: came[own].append(grad[0].detach())))
    for one in (full, fast):
        stirred(one.model.adapter)
    exact = [full.model.adapter.grad.clone() for _ in passes(full)]
    for hook in hooks:
        hook.remove()
    cosines = torch.stack(
        [cosine_similarity(fast.model.adapter.grad, wanted, 0) for wanted, _ in zip(exact, passes(fast), strict=True)]
    )
    forward, backward = defaultdict[str, list[float]](list), defaultdict[str, list[float]](list)
    for (kind, linear), (_, layer) in pairs:
        name = kind if seen[linear][0][..., 0].numel() > FEW else f"{kind} *"
        forward[name] += [error(*(both_ways(one, x)[0] for one in (layer, linear))) for x in seen[linear]]
        for x, grad in zip(seen[linear], came[linear], strict=False):  # nothing comes back to some of the last block
            if grad.any():
                backward[name].append(error(*(both_ways(one, x, grad)[1] for one in (layer, linear))))
    print(f"{'kind of layer':28}{'forward':>9}{'backward':>10}")
    for name, found in forward.items():
        told = f"{sum(backward[name]) / len(backward[name]):10.2%}" if backward[name] else f"{'none':>10}"
        print(f"{name:28}{sum(found) / len(found):9.2%}{told}")
    print("* so few rows that the weight is restored")
    print(f"cosine of the adapter's gradient: mean {cosines.mean():.4f}, least {cosines.min():.4f}", flush=True)
    if cosines.mean() < LEAST:
        sys.exit(f"the cosine is under {LEAST}")


def both_ways(layer: nn.Module, x: Tensor, grad: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """A layer's answer without its bias, and the gradient of its input."""
    x = x.clone().requires_grad_()
    answer = layer(x)
    (back,) = torch.autograd.grad(answer, x, torch.zeros_like(answer) if grad is None else grad)
    bias = getattr(layer, "bias", None)
    return answer.detach() - (0 if bias is None else bias), back


def taught(room: Path, folder: Path, name: str, updates: int, seed: int) -> Made:
    """A model with a LoRA that was taught the concept on it."""
    one = made(room, folder, name, updates, seed)
    for batches in turns(one.material.dataset, one.plan.settings.train, seed):
        one.trainer.update(batches, one.material.item)
    return one


@torch.no_grad()
def held_out(one: Made, unseen: Samples) -> float:
    """The mean loss on the pictures held out, with noise that is the same for all."""
    losses = [
        one.trainer.loss(Turn((number,), FAR + 50 * number + again, 0), unseen)
        for number in range(TAUGHT)
        for again in range(AGAIN)
    ]
    return float(torch.stack(losses).mean())


def compare_loras(room: Path, updates: int, seed: int) -> None:
    """Print the losses of both LoRAs."""
    folders = {"taught": room / "taught", "held out": room / "held-out"}
    for chance, folder in zip((7, 8), folders.values(), strict=True):
        folder.mkdir(exist_ok=True)
        for number, example in enumerate(concept_examples(TAUGHT, 64, chance)):
            example.image.save(folder / f"{number}.png")
            (folder / f"{number}.txt").write_text(example.caption)
    unseen = made(room, folders["held out"], "none", updates).material.item
    full, fast = (taught(room, folders["taught"], name, updates, seed) for name in ("none", "int8-fast"))
    exact, own = held_out(full, unseen), held_out(fast, unseen)
    full.model.adapter.flat.data.copy_(fast.model.adapter.flat)
    moved = held_out(full, unseen)
    print(f"held-out loss after {updates} updates, seed {seed}: taught and tried in full precision {exact:.5f};")
    print(f"taught in int8-fast: tried there {own:.5f} ({own / exact:.4f} of it), on the full base {moved:.5f} "
          f"({moved / exact:.4f} of it)", flush=True)  # fmt: skip


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--updates", type=int, default=120, help="of each LoRA (default 120)")
    parser.add_argument("--seeds", type=int, default=1, help="how many pairs of LoRAs are taught (default 1)")
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as made_here:
        room = Path(made_here)
        shown = scenes(room / "shown", SHOWN, 5)
        compare_layers(*(made(room, shown, name, 1) for name in ("none", "int8-fast")))
        for seed in range(given.seeds):
            compare_loras(room, given.updates, seed)


if __name__ == "__main__":
    main()
