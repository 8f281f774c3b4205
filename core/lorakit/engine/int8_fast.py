"""int8 weights multiplied as int8: activations and gradients are rounded too, row by row, so that the products run on
the integer units, in both directions and with one copy of the weight.

    forward   y  = (xq Wq') sx sw + b          xq, sx = rows of x in int8, with their scales
    backward  dx = (gq Wq) sg                  gq, sg = rows of g sw: the weight's scales lie in g before it is rounded

Rounding a row whose largest number is c times its root mean square (its crest) errs by c / 440 of it. So the first
batch of a run is looked at: a layer whose inputs have a crest over `STEEP` is turned by a Hadamard matrix, which
spreads outliers over 256 numbers, and one whose gradients have a crest over `STEEPER` multiplies backwards in full
precision. Who rounds and multiplies, torch or Triton, is in `int8_products`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from lorakit.engine.frozen import FrozenLinear
from lorakit.engine.int8_products import TORCH, Products, rounded

FEW = 16  # rows up to which restoring the weight is cheaper, and which the integer kernels of CUDA refuse
EVEN = 8  # what the integer kernels of CUDA want the sides of a matrix to be multiples of
TURNED = 256  # numbers that one Hadamard block spreads an outlier over
STEEP = 12.0  # crest of inputs over which turning errs less than rounding as they are
STEEPER = 20.0  # crest of gradients over which the backward product is not rounded


@dataclass(slots=True)
class Crests:
    """How steep a layer's rows were: of its inputs, and of the gradients that came back."""

    inputs: float = 0.0
    gradients: float = 0.0


class Int8FastLinear(FrozenLinear):
    """`weight` is int8 (out, in), `scale` fp32 (out,): the weight is their product, after its inputs were `turned`."""

    packed: ClassVar = ("weight", "scale")
    weight: Tensor
    scale: Tensor

    def __init__(self, linear: nn.Linear, tensors: Mapping[str, Tensor]) -> None:
        super().__init__(linear, tensors)
        self.turned = False
        self.rounds_gradients = True
        self.products: Products = TORCH
        self.crests: Crests | None = None
        """Where crests are noted while a batch is looked at."""

    def restored(self, dtype: torch.dtype) -> Tensor:
        """The weight (out, in) as numbers of `dtype`."""
        weight = self.weight.to(dtype) * self.scale.to(dtype)[:, None]
        return turn(weight) if self.turned else weight

    def forward(self, x: Tensor) -> Tensor:
        """The layer's answer, in x's number format."""
        rows = x.numel() // self.in_features
        if rows <= FEW or self.in_features % EVEN or self.out_features % EVEN:
            return super().forward(x)
        answer: Tensor = _Multiply.apply(x.reshape(rows, self.in_features), self)  # type: ignore[no-untyped-call]
        return answer.view(*x.shape[:-1], self.out_features)

    def settle(self) -> None:
        """Choose by the crests that were met."""
        assert self.crests is not None
        crests, self.crests = self.crests, None
        self.rounds_gradients = crests.gradients <= STEEPER
        if crests.inputs > STEEP and not self.turned and self.in_features % TURNED == 0:
            self.weight, scale = rounded(turn(self.restored(torch.float32)))
            self.scale, self.turned = scale[:, 0], True


class Int8Fast:
    """The quantizer `int8-fast`."""

    version = 1
    packed = Int8FastLinear.packed

    def convert(self, linear: nn.Linear, device: torch.device) -> nn.Module:
        """The layer in int8, quantized on `device`."""
        weight, scale = rounded(linear.weight.detach().to(device))
        return Int8FastLinear(linear, {"weight": weight, "scale": scale[:, 0]}).to(device)

    def rebuild(self, linear: nn.Linear, packed: Mapping[str, Tensor]) -> nn.Module:
        """The layer from its packed weight."""
        return Int8FastLinear(linear, packed)

    def holds(self, module: nn.Module) -> bool:
        """Whether the layer's weight really is int8."""
        return type(module) is Int8FastLinear and module.weight.dtype == torch.int8

    def calibrate(self, blocks: Sequence[nn.Module], batch: Callable[[], Tensor]) -> str:
        """Let every layer choose by one batch, whose loss `batch` gives; what was chosen, in words."""
        layers = [one for block in blocks for one in block.modules() if isinstance(one, Int8FastLinear)]
        for layer in layers:
            layer.crests = Crests()
        batch().backward()  # type: ignore[no-untyped-call]
        multiplied = sorted({layer.products.name for layer in layers if layer.crests and layer.crests.inputs})
        for layer in layers:
            layer.settle()
        turned = sum(layer.turned for layer in layers)
        full = sum(not layer.rounds_gradients for layer in layers)
        said = f"{len(layers)} layers in int8, {turned} with turned inputs, {full} with a full-precision backward"
        return f"{said}, multiplied by {' and '.join(multiplied)}" if multiplied else said


class _Multiply(torch.autograd.Function):
    """x (rows, in) times the layer's weight, rounded in both directions."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: Int8FastLinear) -> Tensor:
        ctx.layer = layer
        if layer.crests is not None:
            layer.crests.inputs = max(layer.crests.inputs, crest(x))
        seen, size = layer.products.rounded(turn(x) if layer.turned else x)
        return layer.products.product(seen, size, layer.weight.T, x.dtype, layer.scale, layer.bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None]:
        layer, grad = ctx.layer, grads[0]
        if layer.crests is not None:
            layer.crests.gradients = max(layer.crests.gradients, crest(grad * layer.scale))
        if not layer.rounds_gradients:
            return grad @ layer.restored(grad.dtype), None
        said, size = layer.products.rounded(grad, layer.scale)
        back = layer.products.product(said, size, layer.weight, grad.dtype)
        return turn(back) if layer.turned else back, None


def crest(rows: Tensor) -> float:
    """Largest number over root mean square of a row; the root mean square of it over rows that are not zero."""
    found = rows.float()
    squares = found.square().mean(-1)
    steep = found.abs().amax(-1).square() / squares.clamp_min(1e-38)
    return float((steep[squares > 0].mean() if bool((squares > 0).any()) else squares.new_zeros(())).sqrt())


def turn(rows: Tensor) -> Tensor:
    """Rows times a block-diagonal Hadamard matrix, which is orthogonal and symmetric: turning twice changes nothing."""
    matrix = _turning(rows.dtype, rows.device)
    return (rows.reshape(-1, TURNED) @ matrix).reshape(rows.shape)


@lru_cache(maxsize=16)
def _turning(dtype: torch.dtype, device: torch.device) -> Tensor:
    """The matrix that rows are turned by, made once for a device: bringing it over would wait for it in every pass."""
    return hadamard(TURNED).to(device, dtype)


def hadamard(size: int) -> Tensor:
    """Sylvester's matrix of ±1/sqrt(size); `size` is a power of two."""
    matrix = torch.ones(1, 1)
    while len(matrix) < size:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    return functional.normalize(matrix, dim=1)
