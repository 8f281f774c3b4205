"""What an update takes on a GPU, at full size: `python benchmarks/gpu.py`; `--tiny` tries the script on any machine.

Models have the published sizes and random weights (`full_size.py`). Each case runs in a process of its own, one after
another, and has so many seconds: first what the device can do (products at the model's own shapes, attention, copies),
then one loop as diffusers' example scripts have it, then lorakit with its levers one by one. A case that fails or does
not fit is recorded as such. The table goes to benchmarks/results/<device>-<date>.json.

Reported of every case: seconds of the first update and of a later one (median), memory, whether losses are finite,
FLOP/s over what the device was measured to do, the cosine of the first gradient with that of plain bf16, and who
multiplied int8.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

from full_size import SUBJECTS, Pool, Subject, channels_of, item, planned

ROOM = Path(__file__).parent / "results"
UPDATES, TINY_UPDATES = 12, 3
SECONDS = 150  # for one case
PLAIN = {"modulation": "layers", "adapter": "plain", "attention": "torch", "recompute": "all", "compile": "off"}
KEPT = {"gradient_checkpointing": False}
GRAPHS = {"speed": {"graphs": "on"}, "model": {"device": "auto"}}  # without CUDA, the run says that it captures nothing
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen, as diffusers' script": ("qwen", {"loop": "diffusers"}),
    "qwen, plain": ("qwen", {"speed": PLAIN}),
    "qwen, + modulation ahead": ("qwen", {"speed": {**PLAIN, "modulation": "table"}}),
    "qwen, + fused adapter": ("qwen", {"speed": {**PLAIN, "modulation": "table", "adapter": "fused"}}),
    "qwen, + attention timed": ("qwen", {"speed": {"recompute": "all"}}),
    "qwen, + recompute as memory asks": ("qwen", {}),
    "qwen, + compiled blocks": ("qwen", {"speed": {"compile": "blocks", "adapter": "plain"}}),
    "qwen, int8": ("qwen", {"quantization": {"name": "int8"}}),
    "qwen, int8-fast by torch's product": (
        "qwen",
        {"quantization": {"name": "int8-fast"}, "speed": {"products": "torch"}},
    ),
    "qwen, int8-fast": ("qwen", {"quantization": {"name": "int8-fast"}}),
    "qwen, int8, half the blocks in host memory": (
        "qwen",
        {"quantization": {"name": "int8"}, "speed": {"offload": 30}},
    ),
    "edit": ("edit", {}),
    "edit with 3 references": ("edit with 3 references", {}),
    "flux": ("flux", {}),
    "sdxl": ("sdxl", {"train": KEPT}),
    "sdxl, + CUDA graphs": ("sdxl", {"train": KEPT, **GRAPHS}),
    "qwen at 512, int8-fast": ("qwen at 512", {"quantization": {"name": "int8-fast"}}),
    "qwen at 512, int8-fast, + CUDA graphs": ("qwen at 512", {"quantization": {"name": "int8-fast"}, **GRAPHS}),
}
"""What is measured: a subject, and settings over those that all share."""


# -- one case, in its own process --------------------------------------------------------------------------------


def lorakit_updates(
    subject: Subject, plan: Any, kit: Any, tiny: bool, gradient: Path, about: dict[str, Any]
) -> Iterator[float]:
    """The loss of each update of lorakit's own trainer; the first gradient goes to a file; `about` is told more."""
    import torch

    from lorakit.control import Control
    from lorakit.dataset import index
    from lorakit.engine import loading, memory
    from lorakit.engine.cache import Cache
    from lorakit.engine.faster import Faster
    from lorakit.engine.loading import load_model
    from lorakit.engine.loop import Trainer
    from lorakit.engine.objective import make_scheduler
    from lorakit.engine.phases import Context
    from lorakit.engine.source import cache_folder, locate
    from lorakit.order import turns

    loading.Weights = Pool  # type: ignore[misc, assignment]
    family = kit.shelves.families[subject.family]
    device = memory.device_for(plan.settings.model.device)
    source, cache = locate(plan, family), Cache(cache_folder(plan))
    context = Context(plan, family, kit.shelves, source, cache, device, Control())
    model = drained(load_model(context))
    groups = [part.group for part in model.adapter.parts]
    part = kit.shelves.optimizers["adamw"]
    optimizer = part.resolve()(groups, plan.settings.optimizer)
    shown = item(subject, tiny, dict(model.denoiser.module.config), channels_of(plan, source))
    trainer = Trainer(
        plan,
        model.denoiser,
        model.adapter,
        make_scheduler(context),
        optimizer,
        family.patch,
        source.dtype,
        table=model.table,
    )
    dataset = index(plan.settings.data, family.planned_sizing(plan.settings))
    coming = list(turns(dataset, plan.settings.train, plan.settings.seed))
    faster = Faster(context, dataset, model, part)
    drained(faster.begin(trainer, lambda _: shown))
    for number, batches in enumerate(coming):
        trainer.foresee([batches], lambda _: shown)
        drained(faster.start(trainer, batches, lambda _: shown))
        (step,) = trainer.done()
        if number == 0:
            torch.save(model.adapter.grad.float().cpu(), gradient)
        if plan.settings.speed.products:
            about["products"] = model.products.name if model.products else "torch._int_mm"
        if plan.settings.speed.graphs == "on":
            about["graphs"] = str(trainer.graphs or "nothing is captured without CUDA")
        yield step.loss


def drained(events: Any) -> Any:
    """What a generator of events answers at its end."""
    events = iter(events)
    while True:
        try:
            next(events)
        except StopIteration as end:
            return end.value


def script_updates(subject: Subject, plan: Any, tiny: bool) -> Iterator[float]:
    """The loss of each update of a loop as diffusers' example scripts have it: peft, a mask, AdamW, waits."""
    import diffusers
    import torch
    from diffusers.training_utils import compute_loss_weighting_for_sd3
    from peft import LoraConfig

    from lorakit.engine.weights import hollow, place

    device = torch.device(plan.settings.model.device)
    folder = Path(plan.settings.model.source) / "transformer"
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    model = hollow(getattr(diffusers, config["_class_name"]), folder, torch.bfloat16)
    for name, values in Pool(folder, "").read(list(model.state_dict())):
        place(model, name, values.to(device))
    model.to(device)
    model.requires_grad_(False)
    model.enable_gradient_checkpointing()
    lora = plan.settings.lora
    model.add_adapter(LoraConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules=list(lora.targets)))
    trained = [one for one in model.parameters() if one.requires_grad]
    for one in trained:
        one.data = one.data.float()
    optimizer = torch.optim.AdamW(trained, lr=1e-4)
    shown = item(subject, tiny, config, 16)
    rows, columns = (length // 2 for length in shown.latents.shape[-2:])
    text = shown.text.hidden.to(device, torch.bfloat16)
    mask = torch.ones(text.shape[:2], dtype=torch.long, device=device)
    channels = shown.latents.shape[0]
    clean = shown.latents[None].to(device, torch.bfloat16)
    model.train()
    for _ in range(plan.settings.train.updates):
        noise = torch.randn_like(clean)
        sigma = torch.sigmoid(torch.randn(1)).to(device, torch.bfloat16)[:, None, None, None]
        noisy = (1 - sigma) * clean + sigma * noise
        packed = noisy.view(1, channels, rows, 2, columns, 2).permute(0, 2, 4, 1, 3, 5).reshape(1, rows * columns, -1)
        with torch.autocast(device.type, torch.bfloat16):
            answer = model(
                hidden_states=packed,
                timestep=sigma.flatten(),
                encoder_hidden_states=text,
                encoder_hidden_states_mask=mask,
                img_shapes=[[(1, rows, columns)]],
                return_dict=False,
            )[0]
        answer = answer.view(1, rows, columns, channels, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(clean.shape)
        weight = compute_loss_weighting_for_sd3("none", sigma)
        loss = (weight.float() * (answer.float() - (noise - clean).float()) ** 2).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        yield loss.detach().item()


def measured(name: str, tiny: bool, gradient: Path) -> dict[str, Any]:
    """One case: how long its updates take, and what they say."""
    import torch

    from lorakit.engine import memory

    key, settings = CASES[name]
    subject, settings = SUBJECTS[key], dict(settings)
    loop = settings.pop("loop", "lorakit")
    settings["train"] = {**settings.get("train", {}), "updates": TINY_UPDATES if tiny else UPDATES}
    with tempfile.TemporaryDirectory() as room:
        kit, plan = planned(subject, Path(room), settings, tiny)
        found = kit.estimate(plan)
        about: dict[str, Any] = {}
        updates = (
            script_updates(subject, plan, tiny)
            if loop == "diffusers"
            else lorakit_updates(subject, plan, kit, tiny, gradient, about)
        )
        began, took, losses = time.perf_counter(), [], []
        for loss in updates:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            took.append(time.perf_counter() - began)
            losses.append(loss)
            began = time.perf_counter()
        device = memory.device_for(plan.settings.model.device)
        return {
            "first update, loading included": took[0],
            "update": median(took[2:] or took[1:] or took),
            "memory": memory.peak(device),
            "finite": all(loss == loss and abs(loss) < 1e6 for loss in losses),
            "losses": losses,
            "flops": found.flops if found else None,
            **about,
            "versions": {"torch": torch.__version__, "device": memory.describe(device)},
        }


# -- what the device can do --------------------------------------------------------------------------------------


def ceilings(tiny: bool) -> dict[str, Any]:
    """Products at Qwen-Image's shapes, in bf16 and in int8, attention of its length by each kernel, pinned copies."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.nn.functional import scaled_dot_product_attention as attention

    cuda = torch.cuda.is_available()
    device = torch.device("cuda" if cuda else "cpu")
    tokens, wide, heads, head = (64, 128, 2, 32) if tiny else (4160, 3072, 24, 128)

    def best(work: Callable[[], Any]) -> float:
        times = []
        for _ in range(8):
            began = time.perf_counter()
            for _ in range(4):
                work()
            if cuda:
                torch.cuda.synchronize()
            times.append((time.perf_counter() - began) / 4)
        return min(times)

    x = torch.randn(tokens, wide, device=device, dtype=torch.bfloat16)
    found: dict[str, Any] = {}
    for outputs in (wide, 4 * wide):
        weight = torch.randn(outputs, wide, device=device, dtype=torch.bfloat16)
        rate = 2 * tokens * wide * outputs / best(lambda weight=weight: x @ weight.t())
        found[f"product {tokens}x{wide}x{outputs}, TFLOP/s"] = rate / 1e12
    found |= int8_ceilings(x, [wide, 4 * wide], best)
    query = torch.randn(1, heads, tokens, head, device=device, dtype=torch.bfloat16)
    for backend in (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION):
        try:
            with sdpa_kernel(backend):
                rate = 4 * heads * tokens**2 * head / best(lambda: attention(query, query, query))
            found[f"attention {backend.name}, TFLOP/s"] = rate / 1e12
        except RuntimeError as error:
            found[f"attention {backend.name}"] = str(error).splitlines()[0]
    host = torch.empty((1 if tiny else 256) << 20, dtype=torch.uint8, pin_memory=cuda)
    there = torch.empty_like(host, device=device)
    found["copy to the device, GB/s"] = host.numel() / best(lambda: there.copy_(host, non_blocking=True)) / 1e9
    return found


def int8_ceilings(x: Any, widths: list[int], best: Callable[[Callable[[], Any]], float]) -> dict[str, Any]:
    """What a layer of int8-fast does forward and backward, rounding and all, by torch and by Triton where it runs."""
    import torch

    from lorakit.engine.int8_fast import Int8Fast
    from lorakit.engine.int8_products import TORCH, Products, choose

    found: dict[str, Any] = {}
    for outputs in widths:
        linear = torch.nn.Linear(x.shape[1], outputs, dtype=x.dtype)
        layer: Any = Int8Fast().convert(linear, x.device)
        grad = torch.randn(x.shape[0], outputs, device=x.device, dtype=x.dtype)
        ways: list[Products] = [TORCH, *filter(None, [choose([layer], x.device)])]
        for way in ways:

            def forward(way: Products = way, layer: Any = layer) -> None:
                way.product(*way.rounded(x), layer.weight.T, x.dtype, layer.scale, layer.bias)

            def backward(way: Products = way, layer: Any = layer, grad: Any = grad) -> None:
                way.product(*way.rounded(grad, layer.scale), layer.weight, x.dtype)

            for name, work in (("forward", forward), ("backward", backward)):
                work()  # kernels are compiled, and their blocks chosen
                rate = 2 * x.numel() * outputs / best(work)
                found[f"int8 {name} {x.shape[0]}x{x.shape[1]}x{outputs} by {way.name}, TOP/s"] = rate / 1e12
    return found


# -- all of them -------------------------------------------------------------------------------------------------


def apart(words: list[str], tiny: bool) -> dict[str, Any]:
    """What a process of its own prints as its last line; what went wrong, where it does not."""
    command = [sys.executable, __file__, *words, *(["--tiny"] if tiny else [])]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, env={**os.environ})
    except subprocess.TimeoutExpired:
        return {"failed": f"took more than {SECONDS} s"}
    if done.returncode:
        return {"failed": (done.stderr.strip().splitlines() or ["no word"])[-1][:300]}
    return dict(json.loads(done.stdout.splitlines()[-1]))


def main(wanted: list[str], tiny: bool) -> int:
    """Measure, print and write down; the number of cases that failed."""
    import torch

    table: dict[str, Any] = {"ceilings": apart(["--ceilings"], tiny), "cases": {}}
    for name, value in table["ceilings"].items():
        print(f"{name:60}{value if isinstance(value, str) else round(value, 2)}", flush=True)
    ceiling = max((value for name, value in table["ceilings"].items() if "product" in name), default=0.0) * 1e12
    with tempfile.TemporaryDirectory() as room:
        for name in CASES:
            if wanted and not any(one in name for one in wanted):
                continue
            file = Path(room) / f"{re.sub(r'[^a-z0-9]+', '-', name)}.pt"
            found = apart(["--one", name, "--gradient", str(file)], tiny)
            plain = Path(room) / "qwen-plain.pt"
            if file.exists() and plain.exists() and CASES[name][0] == "qwen":
                mine, theirs = torch.load(file), torch.load(plain)
                found["gradient cosine"] = float(torch.nn.functional.cosine_similarity(mine, theirs, 0))
            if found.get("flops") and ceiling:
                found["of the ceiling"] = found["flops"] / found["update"] / ceiling
            table["cases"][name] = found
            print(f"{name:44}{line(found)}", flush=True)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    if not tiny:
        ROOM.mkdir(exist_ok=True)
        called = re.sub(r"[^A-Za-z0-9]+", "-", device).strip("-").lower()
        file = ROOM / f"{called}-{datetime.now(UTC):%Y-%m-%d}.json"
        file.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
        print(file)
    return sum("failed" in one for one in table["cases"].values())


def line(found: dict[str, Any]) -> str:
    """A case in one line."""
    if "failed" in found:
        return f"failed: {found['failed']}"
    words = [f"{found['update']:.3f} s", f"first {found['first update, loading included']:.1f} s"]
    words.append(f"{found['memory'] / 1e9:.1f} GB")
    if "of the ceiling" in found:
        words.append(f"{found['of the ceiling']:.0%} of the ceiling")
    if "gradient cosine" in found:
        words.append(f"cosine {found['gradient cosine']:.4f}")
    if "products" in found:
        words.append(f"by {found['products']}")
    if "graphs" in found:
        words.append(found["graphs"])
    return ", ".join(words + ([] if found["finite"] else ["NOT FINITE"]))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--tiny", action="store_true", help="toy sizes, to try the script without a GPU")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--gradient", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--ceilings", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("cases", nargs="*", help="parts of the names of cases; all without")
    given = parser.parse_args()
    if given.ceilings:
        print(json.dumps(ceilings(given.tiny)))
    elif given.one:
        print(json.dumps(measured(given.one, given.tiny, given.gradient)))
    else:
        sys.exit(1 if main(given.cases, given.tiny) else 0)
