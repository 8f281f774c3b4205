"""Who rounds rows to int8 and multiplies them for `int8-fast`: torch, or kernels of our own in Triton.

torch._int_mm answers in int32, so that the output is written and read again for every operation that follows. The
kernels answer in scaled numbers. Both sum integers, which is exact, and differ by the rounding of what follows.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Iterator
from types import ModuleType
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from lorakit.engine.memory import is_exhausted
from lorakit.events import Event, Warned

LARGEST = 127
LEAST = 1e-12  # what the largest number of a row counts as, where it is less
CAPABILITY = (8, 0)  # of a card, under which Triton has no product of int8


class Products(Protocol):
    """The two operations of a layer in int8."""

    @property
    def name(self) -> str:
        """What multiplies, in words."""

    def rounded(self, rows: Tensor, columns: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Rows, times the scale of each column where there are such, in int8, and the fp32 scale of each (rows, 1)."""

    def product(
        self,
        codes: Tensor,
        sizes: Tensor,
        weight: Tensor,
        dtype: torch.dtype,
        scale: Tensor | None = None,
        bias: Tensor | None = None,
    ) -> Tensor:
        """Codes (rows, in) times `weight` (in, out): times a size a row and a scale a column, plus bias."""


class Torch:
    """torch's product, and an operation for each thing that follows."""

    name = "torch._int_mm"

    def rounded(self, rows: Tensor, columns: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """As `Products` has it."""
        return rounded(rows if columns is None else rows.float() * columns)

    def product(
        self,
        codes: Tensor,
        sizes: Tensor,
        weight: Tensor,
        dtype: torch.dtype,
        scale: Tensor | None = None,
        bias: Tensor | None = None,
    ) -> Tensor:
        """As `Products` has it."""
        answer = torch._int_mm(codes, weight).float() * sizes
        if scale is not None:
            answer = answer * scale
        if bias is not None:
            answer += bias.float()
        return answer.to(dtype)


TORCH = Torch()


class Triton:
    """Kernels that do everything in one go, until one of them fails: from then on torch multiplies."""

    def __init__(self, kernels: ModuleType | None, failure: str = "") -> None:
        self._kernels, self.failure, self._told = kernels, failure, False

    @property
    def name(self) -> str:
        """What multiplies, in words."""
        return TORCH.name if self._kernels is None else "triton"

    def rounded(self, rows: Tensor, columns: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """As `Products` has it."""
        if self._kernels is not None:
            try:
                found: tuple[Tensor, Tensor] = self._kernels.rounded(rows, columns)
                return found
            except Exception as error:  # whatever a compiler, a driver or a missing C compiler raises
                self._give_up(error)
        return TORCH.rounded(rows, columns)

    def product(
        self,
        codes: Tensor,
        sizes: Tensor,
        weight: Tensor,
        dtype: torch.dtype,
        scale: Tensor | None = None,
        bias: Tensor | None = None,
    ) -> Tensor:
        """As `Products` has it."""
        if self._kernels is not None:
            try:
                found: Tensor = self._kernels.product(codes, sizes, weight, dtype, scale, bias)
                return found
            except Exception as error:
                self._give_up(error)
        return TORCH.product(codes, sizes, weight, dtype, scale, bias)

    def news(self) -> Iterator[Warned]:
        """Once, why torch multiplies in their place, where it does."""
        if self.failure and not self._told:
            self._told = True
            yield Warned(
                message=f"{self.failure}; {TORCH.name} multiplies in their place, the same but for speed and rounding. "
                "Set speed.products = 'torch' where that is meant"
            )

    def _give_up(self, error: Exception) -> None:
        if is_exhausted(error):
            raise error
        first = next(iter(str(error).strip().splitlines()), "")
        self._kernels, self.failure = None, f"triton's kernels fail ({type(error).__name__}: {first[:160]})"


@runtime_checkable
class Multiplying(Protocol):
    """A layer that leaves its products to somebody."""

    products: Products


def choose(blocks: Iterable[nn.Module], device: torch.device) -> Triton | None:
    """Let Triton multiply for every layer of the blocks that leaves it open; None where there is none, or no CUDA."""
    layers = [one for block in blocks for one in block.modules() if isinstance(one, Multiplying)]
    if not layers or device.type != "cuda":
        return None
    obstacle = _obstacle(device)
    found = Triton(None, obstacle) if obstacle else _loaded()
    for layer in layers:
        layer.products = found
    return found


def told(products: Triton | None) -> Iterator[Event]:
    """What is new of who multiplies, if anything is."""
    if products is not None:
        yield from products.news()


def _obstacle(device: torch.device) -> str:
    """Why no kernel of Triton can run on a CUDA device, if none can."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if torch.cuda.get_device_capability(device) < CAPABILITY:
        return "triton multiplies int8 on cards of capability 8.0 or newer"
    return ""


def _loaded() -> Triton:
    """The kernels, which take Triton's import."""
    try:
        from lorakit.engine import int8_triton
    except Exception as error:  # an installation that is broken may raise anything
        return Triton(None, f"triton cannot be imported ({type(error).__name__}: {str(error)[:160]})")
    return Triton(int8_triton)


def rounded(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Rows in int8, and the fp32 scale of each (rows, 1): the largest number of a row becomes 127."""
    size = rows.abs().amax(-1, keepdim=True).float().clamp_min(LEAST) / LARGEST
    return (rows.float() / size).round_().clamp_(-LARGEST, LARGEST).to(torch.int8), size
