"""Which of torch's attention kernels is the fastest for the run's own shapes on this device, timed once and kept.

Kernels differ by device: cuDNN's is far ahead of flash on Hopper at training lengths, and behind it on Ampere
(huggingface/transformers PR 48163), so that nothing but a clock decides.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from lorakit import jsontext
from lorakit.engine.cache import write_atomically

KERNELS = ("FLASH_ATTENTION", "CUDNN_ATTENTION", "EFFICIENT_ATTENTION")
ROUNDS = 5


@dataclass(frozen=True, slots=True)
class Form:
    """One call of attention: shapes (B, heads, tokens, width) of queries and keys, number format, mask or none."""

    queries: tuple[int, ...]
    keys: tuple[int, ...]
    dtype: torch.dtype
    masked: bool

    @property
    def work(self) -> int:
        """Products of a query with a key."""
        return self.queries[0] * self.queries[1] * self.queries[2] * self.keys[2]

    def __str__(self) -> str:
        mask = ", masked" if self.masked else ""
        return f"{'x'.join(map(str, self.queries))} to {self.keys[2]} tokens, {str(self.dtype)[6:]}{mask}"


class Seen(TorchFunctionMode):
    """Notes every call of attention while it is entered."""

    def __init__(self) -> None:
        super().__init__()
        self.forms: set[Form] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        """The call itself, noted where it is one of attention."""
        told = dict(kwargs or {})
        if func is scaled_dot_product_attention:
            named = {**dict(zip(("query", "key", "value", "attn_mask"), args, strict=False)), **told}
            query, key = named["query"], named["key"]
            masked = named.get("attn_mask") is not None
            self.forms.add(Form(tuple(query.shape), tuple(key.shape), query.dtype, masked))
        return func(*args, **told)


Clock = Callable[[str, Form, torch.device], float]
"""Seconds of a kernel, forward and backward, in a form of call; RuntimeError where it cannot."""


def seconds(kernel: str, form: Form, device: torch.device) -> float:
    """The least of some rounds on a CUDA device, measured by its own events."""
    query, key, value = (
        torch.randn(shape, device=device, dtype=form.dtype, requires_grad=True)
        for shape in (form.queries, form.keys, form.keys)
    )
    mask = torch.ones(form.queries[0], 1, 1, form.keys[2], dtype=torch.bool, device=device) if form.masked else None
    found: list[float] = []
    for _ in range(ROUNDS + 1):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        begin.record()
        with sdpa_kernel(getattr(SDPBackend, kernel)):
            scaled_dot_product_attention(query, key, value, attn_mask=mask).sum().backward()  # type: ignore[no-untyped-call]
        end.record()
        end.synchronize()
        found.append(begin.elapsed_time(end) / 1e3)
    return min(found[1:])


@dataclass(frozen=True, slots=True)
class Chosen:
    """The form that kernels were timed in, and the seconds of each that takes it."""

    form: Form
    times: Mapping[str, float]

    @property
    def kernel(self) -> str:
        """The fastest; empty where torch is left to choose."""
        return min(self.times, key=lambda name: self.times[name], default="")

    def __str__(self) -> str:
        told = ", ".join(f"{name.split('_')[0].lower()} {1e3 * took:.3g} ms" for name, took in self.times.items())
        return f"{told or 'torch chooses: no kernel takes it'} ({self.form})"


def choose(forms: set[Form], device: torch.device, name: str, file: Path, clock: Clock = seconds) -> Chosen | None:
    """The fastest kernel for the largest of the forms, timed where `file` does not know it yet; None without forms."""
    if not forms:
        return None
    form = max(forms, key=lambda one: (one.work, str(one)))
    key, known = f"{name}, torch {torch.__version__}: {form}", dict[str, Any]()
    with suppress(OSError, ValueError):  # the first time, or a torn file
        known = jsontext.table(file.read_bytes())
    if not isinstance(known.get(key), dict):
        known[key] = dict(_timed(form, device, clock))
        write_atomically(file, json.dumps(known, indent=1).encode())
    return Chosen(form, {kernel: float(took) for kernel, took in known[key].items() if kernel in KERNELS})


def _timed(form: Form, device: torch.device, clock: Clock) -> Iterator[tuple[str, float]]:
    for kernel in KERNELS:
        with warnings.catch_warnings(), suppress(RuntimeError):  # what torch raises where a kernel does not take it
            warnings.simplefilter("ignore")
            yield kernel, clock(kernel, form, device)


@contextmanager
def preferred(chosen: Chosen | None) -> Iterator[None]:
    """For a while, torch takes that kernel first, and others where it does not take a call."""
    if chosen is None or not chosen.kernel:
        yield
        return
    order = [chosen.kernel, *(name for name in (*KERNELS, "MATH") if name != chosen.kernel)]
    with sdpa_kernel([getattr(SDPBackend, name) for name in order], set_priority=True):
        yield


def seen(work: Callable[[], Tensor | None]) -> set[Form]:
    """The forms of attention in some work."""
    found = Seen()
    with found, torch.compiler.set_stance("force_eager"):  # compiled code does not show its calls
        work()
    return found.forms
