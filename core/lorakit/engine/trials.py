"""What really works on this machine: kernels, quantizers and optimizers, each tried on something small."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from lorakit.engine import int8_products
from lorakit.registry import Part, Shelves
from lorakit.settings import Optimizer

KERNELS = ("MATH", "FLASH_ATTENTION", "EFFICIENT_ATTENTION", "CUDNN_ATTENTION")
WIDTH, TOKENS = 256, 64
CLOSE = 0.02  # largest difference of two kernels in bf16, of answers about 1
SLOWER = "Training is slower. Triton comes with CUDA builds of torch; it needs a C compiler (gcc) and a recent card."


@dataclass(frozen=True, slots=True)
class Examined:
    """One thing that was looked at; `remedy` is what to do about it where it is not ok."""

    subject: str
    state: Literal["ok", "warning", "problem"]
    said: str
    remedy: str = ""


def tried(subject: str, trial: Callable[[], str], remedy: str = "") -> Examined:
    """What a trial says of itself; one that fails in any way is a problem."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return Examined(subject, "ok", trial())
    except Exception as error:  # whatever a kernel or a library of somebody else's raises
        return Examined(subject, "problem", f"fails: {reason(error)}", remedy)


def reason(error: BaseException) -> str:
    """The first line of an error, with its kind."""
    first = next(iter(str(error).strip().splitlines()), "")
    return f"{type(error).__name__}: {first[:160]}" if first else type(error).__name__


# -- attention -----------------------------------------------------------------------------------------------


def attention(device: torch.device) -> Iterator[Examined]:
    """Each of torch's attention kernels, forward and backward in bf16, held against the plain one."""
    expected, _ = _attend("MATH", device)
    for name in KERNELS:
        subject = f"attention {name.removesuffix('_ATTENTION').lower()}"
        try:
            answer, gradient = _attend(name, device)
        except RuntimeError as error:  # what torch raises where a kernel is not for this device
            yield Examined(subject, *_missing(name, device, reason(error)))
            continue
        apart = (answer - expected).abs().max().item()
        if apart > CLOSE or not torch.isfinite(gradient).all():
            said = f"answers {apart:.2g} away from the plain kernel, or gives gradients that are no numbers"
            yield Examined(subject, "problem", said, "Update torch and the driver; report it to them if it stays.")
        else:
            yield Examined(subject, "ok", f"works forward and backward on {device.type} in bf16")


def _attend(kernel: str, device: torch.device) -> tuple[Tensor, Tensor]:
    draws = torch.Generator().manual_seed(0)
    shape = (3, 1, 4, TOKENS, 64)
    q, k, v = (torch.randn(shape, generator=draws)).to(device, torch.bfloat16).unbind()
    q.requires_grad_()
    with warnings.catch_warnings(), sdpa_kernel(getattr(SDPBackend, kernel)):
        warnings.simplefilter("ignore")
        answer = scaled_dot_product_attention(q, k, v)
        answer.sum().backward()  # type: ignore[no-untyped-call]
    assert q.grad is not None
    return answer.detach().float(), q.grad.float()


def _missing(kernel: str, device: torch.device, why: str) -> tuple[Literal["ok", "warning", "problem"], str, str]:
    if device.type != "cuda":
        return "ok", f"not for {device.type}; torch takes another kernel by itself", ""
    if kernel == "FLASH_ATTENTION":
        return (
            "warning",
            f"not here: {why}",
            "Training is slower; it needs a GPU of capability 8.0 and a CUDA build of torch.",
        )
    return "ok", f"not here ({why}); torch takes another kernel by itself", ""


# -- quantizers and optimizers -------------------------------------------------------------------------------


def quantizers(shelves: Shelves, device: torch.device) -> Iterator[Examined]:
    """Each registered quantizer converts one small layer, which must answer and pass gradients on."""
    for name, part in shelves.quantizers.items():
        subject = f"quantizer {name}"
        kernels: list[int8_products.Triton] = []
        found = _absent(subject, part) or tried(subject, partial(_quantized, part, device, kernels), part.remedy)
        failure = next((one.failure for one in kernels if one.failure), "")
        if failure and found.state == "ok":
            found = Examined(subject, "warning", f"{found.said}: {failure}", SLOWER)
        yield found


def _quantized(part: Part, device: torch.device, kernels: list[int8_products.Triton]) -> str:
    torch.manual_seed(0)
    linear = nn.Linear(WIDTH, WIDTH, dtype=torch.bfloat16)
    x = torch.randn(TOKENS, WIDTH, dtype=torch.bfloat16)
    expected = linear(x).detach().to(device)
    x = x.to(device).requires_grad_()
    quantizer = part.resolve()()
    converted = quantizer.convert(linear, device)
    if not quantizer.holds(converted):
        raise RuntimeError("the layer is not held as it should be")
    chosen = int8_products.choose([converted], device)
    kernels += [chosen] if chosen else []
    answer = converted(x)
    answer.square().sum().backward()
    if x.grad is None or not torch.isfinite(x.grad).all() or not x.grad.any():
        raise RuntimeError("gradients are missing, zero or no numbers")
    apart = ((answer - expected).float().norm() / expected.float().norm()).item()
    if not apart < 1:
        raise RuntimeError(f"the layer's answers are {apart:.0%} off")
    by = f", multiplied by {converted.products.name}" if isinstance(converted, int8_products.Multiplying) else ""
    return f"works forward and backward on {device.type}; a small layer's answers are {apart:.1%} off{by}"


def optimizers(shelves: Shelves, device: torch.device) -> Iterator[Examined]:
    """Each registered optimizer makes one update of one flat parameter."""
    for name, part in shelves.optimizers.items():
        subject = f"optimizer {name}"
        yield _absent(subject, part) or tried(subject, lambda part=part: _updated(part, device), part.remedy)  # type: ignore[misc]


def _updated(part: Part, device: torch.device) -> str:
    parameter = nn.Parameter(torch.ones(WIDTH * TOKENS, device=device))
    made = part.resolve()([{"params": [parameter]}], Optimizer(learning_rate=1e-2))
    parameter.grad = torch.ones_like(parameter)
    made.step()
    moved = (parameter.detach() - 1).mean().item()
    if not torch.isfinite(parameter).all() or not -1 < moved < 0:
        raise RuntimeError("an update against a positive gradient does not lower the parameter")
    return f"makes an update on {device.type}"


def _absent(subject: str, part: Part) -> Examined | None:
    missing = [name for name in part.requires if not _installed(name)]
    if not missing:
        return None
    return Examined(
        subject, "warning", f"needs {', '.join(missing)}, which is not installed", f"{part.remedy}, to use it."
    )


def _installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:  # the package that it would be in
        return False
