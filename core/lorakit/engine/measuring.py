"""How fast this machine really is: products, attention, element-wise work and single operations, timed.

Of several timings the shortest counts: whatever else the machine does only ever adds.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lorakit.engine import memory
from lorakit.engine.cache import write_atomically
from lorakit.errors import LorakitError, RunError
from lorakit.estimate.rates import Rates, Speed, file_of, to_json
from lorakit.words import count

FORMATS = {"bf16": torch.bfloat16, "fp32": torch.float32}
WIDTHS = (16, 128, 1024, 3072)  # an adapter's rank, a toy's width, and those of models of today
BUDGET = 0.2  # seconds for one measurement
LEAST = 3


def calibrate(name: str) -> Rates:
    """Measure the device of that name, and write down what was found."""
    device = memory.device_for(name)
    if device.type == "mps":
        raise RunError("lorakit calibrate measures CUDA devices and CPUs, not mps", fix="Say --device cpu.")
    context = _libraries(device)
    speeds = {one: _speed(device, dtype) for one, dtype in FORMATS.items()}
    usual = "bf16" if device.type == "cuda" else "fp32"
    kernel, bandwidth = _others(device, speeds[usual], FORMATS[usual])
    found = Rates(
        name=device_name(device),
        memory=_memory(device),
        ceiling={one: max(rate for _, rate in speed.matmul) for one, speed in speeds.items()},
        speeds=speeds,
        bandwidth=bandwidth,
        kernel=kernel,
        hides=device.type == "cuda",
        context=context,
        slack=1.0,
        measured=datetime.now(UTC).strftime("%Y-%m-%d"),
    )
    file = file_of(found.name)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, to_json(found).encode())
    except (OSError, LorakitError) as error:
        raise RunError(
            f"{file} cannot be written", why=str(error), fix="Set XDG_CACHE_HOME to another folder."
        ) from error
    return found


def device_name(device: torch.device) -> str:
    """What the device is called; of a CPU its threads too, for they decide how fast it is."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return device.type
    return f"{_processor()}, {count(torch.get_num_threads(), 'thread')}"


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine() or "CPU"


def _memory(device: torch.device) -> float | None:
    return float(torch.cuda.get_device_properties(device).total_memory) if device.type == "cuda" else None


def _libraries(device: torch.device) -> float:
    """Bytes that are taken before there is any model: the CUDA context, or Python with its libraries."""
    if device.type == "cuda":
        torch.ones(1, device=device)
        free, total = torch.cuda.mem_get_info(device)
        return float(total - free - torch.cuda.memory_reserved(device))
    import transformers.modeling_utils  # noqa: F401

    return float(memory.peak(device))


# -- rates ---------------------------------------------------------------------------------------------------------


def _speed(device: torch.device, dtype: torch.dtype) -> Speed:
    tokens = 4096 if device.type == "cuda" else 192
    products = tuple((width, _product(device, dtype, tokens, width)) for width in WIDTHS)
    return Speed(matmul=products, attention=_attention(device, dtype, tokens))


def _product(device: torch.device, dtype: torch.dtype, tokens: int, width: int) -> float:
    """FLOP/s of tokens times a weight of (width, at least 128): a linear layer, or half of an adapter."""
    inputs = max(width, 128)
    x, weight = (torch.randn(rows, inputs, device=device, dtype=dtype) for rows in (tokens, width))
    return 2 * tokens * inputs * width / _least(device, lambda: functional.linear(x, weight))


def _attention(device: torch.device, dtype: torch.dtype, tokens: int) -> tuple[float, float]:
    """FLOP/s of attention forward and backward, the backward pass counted as two and a half forward passes."""
    heads, side = (24, 128) if device.type == "cuda" else (4, 32)
    shape = (1, heads, tokens, side)
    query, key, value = (torch.randn(shape, device=device, dtype=dtype, requires_grad=True) for _ in range(3))
    answer = functional.scaled_dot_product_attention(query, key, value)
    direction = torch.randn_like(answer)
    work = 4 * tokens * tokens * heads * side
    with torch.no_grad():
        forward = _least(device, lambda: functional.scaled_dot_product_attention(query, key, value))
    backward = _least(device, lambda: torch.autograd.grad(answer, (query, key, value), direction, retain_graph=True))
    return work / forward, 2.5 * work / backward


# -- everything else -----------------------------------------------------------------------------------------------


class _Block(nn.Module):
    """A frozen block as the models of today have it: modulated, attending, feeding forward."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm, self.each = nn.LayerNorm(width, elementwise_affine=False), nn.RMSNorm(width // heads)
        self.queries, self.keys, self.values, self.out = (nn.Linear(width, width) for _ in range(4))
        self.wide, self.back = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor, scale: Tensor) -> Tensor:
        """x (1, tokens, width), by a scale (1, 1, width)."""
        seen = self.norm(x) * (1 + scale) + scale
        query, key, value = (
            layer(seen).unflatten(-1, (self.heads, -1)) for layer in (self.queries, self.keys, self.values)
        )
        query, key = (self.each(one).transpose(1, 2) * 0.5 for one in (query, key))
        answer = functional.scaled_dot_product_attention(query, key, value.transpose(1, 2))
        x = x + scale * self.out(answer.transpose(1, 2).flatten(2))
        seen = self.norm(x) * (1 + scale) + scale
        fed: Tensor = self.back(functional.gelu(self.wide(seen), approximate="tanh"))
        return x + scale * fed


class _Counting(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts operations that are more than another view, and elements that those but products read and write."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = self.moved = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        answer, name = func(*args, **(kwargs or {})), func.overloadpacket.__name__
        if func.is_view or name in ("detach", "_unsafe_view", "empty"):
            return answer
        self.count += 1
        if name not in ("mm", "addmm", "bmm") and "attention" not in name:
            self.moved += sum(one.numel() for one in tree_leaves((args, answer)) if isinstance(one, Tensor))
        return answer


def _others(device: torch.device, speed: Speed, dtype: torch.dtype) -> tuple[tuple[float, float], float]:
    """Seconds of an operation on next to nothing, forward and backward; bytes/s that element-wise operations move.

    The second is what remains of a block's time without its products, its attention and the start of its operations.
    """
    small = _block(device, torch.float32, tokens=4, width=32, heads=4)
    kernel = (small.ahead / small.kernels[0], small.back / small.kernels[1])
    tokens, width, heads = (4096, 3072, 24) if device.type == "cuda" else (192, 256, 8)
    real = _block(device, dtype, tokens=tokens, width=width, heads=heads)
    products, attention = 24 * width * width * tokens, 4 * tokens * tokens * width
    known = 2 * products / speed.at(width) + attention / speed.attention[0] + 2.5 * attention / speed.attention[1]
    if device.type != "cuda":  # a GPU starts operations while it works
        known += real.kernels[0] * kernel[0] + real.kernels[1] * kernel[1]
    rest = real.ahead + real.back - known
    least = 0.1 * (real.ahead + real.back)  # what the noise of the other measurements may leave
    return kernel, real.moved * dtype.itemsize / max(rest, least)


@dataclass(frozen=True, slots=True)
class _Timed:
    """A stretch of blocks: seconds and operations forward and backward, and elements moved in both."""

    ahead: float
    back: float
    kernels: tuple[int, int]
    moved: int


def _block(device: torch.device, dtype: torch.dtype, *, tokens: int, width: int, heads: int) -> _Timed:
    block = _Block(width, heads).to(device, dtype).requires_grad_(False)
    x = torch.randn(1, tokens, width, device=device, dtype=dtype, requires_grad=True)
    scale, direction = torch.randn(1, 1, width, device=device, dtype=dtype), torch.randn_like(x)

    def forward() -> Tensor:
        answer: Tensor = block(x, scale)
        return answer

    def both() -> None:
        torch.autograd.grad(forward(), x, direction)

    with _Counting() as first:
        forward()
    with _Counting() as all_of_it:
        both()
    ahead, whole = _least(device, forward), _least(device, both)
    kernels = (first.count, all_of_it.count - first.count)
    return _Timed(ahead, max(1e-9, whole - ahead), kernels, all_of_it.moved)


# -- timing --------------------------------------------------------------------------------------------------------


def _least(device: torch.device, work: Callable[[], object]) -> float:
    """The shortest time of one run of `work`, in seconds."""
    return min(_times(device, work))


def _times(device: torch.device, work: Callable[[], object]) -> Iterator[float]:
    """Times of one run after another, until the budget is spent; on a GPU, of enough runs at once to fill it."""
    _timed(device, work, 1)
    once = max(1e-7, _timed(device, work, 1))
    runs = max(1, min(1000, int((0.02 if device.type == "cuda" else 0.0005) / once)))
    began, done = time.perf_counter(), 0
    while done < LEAST or time.perf_counter() - began < BUDGET:
        yield _timed(device, work, runs) / runs
        done += 1


def _timed(device: torch.device, work: Callable[[], object], runs: int) -> float:
    """Seconds of the GPU; on a CPU, those that this thread was at work: others may run there too."""
    if device.type != "cuda":
        began = time.thread_time()
        for _ in range(runs):
            work()
        return time.thread_time() - began
    torch.cuda.synchronize(device)
    began = time.perf_counter()
    for _ in range(runs):
        work()
    torch.cuda.synchronize(device)
    return time.perf_counter() - began
