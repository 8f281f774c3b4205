"""A frozen linear layer with a low-rank answer added to it, in torch's own steps or fused into one operation.

Fused, A and B have their gradients added where the flat gradient is, and layers that are given the same input, as
queries, keys and values are, answer together. Both ways compute the same; sums are rounded in another order.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

if TYPE_CHECKING:
    from lorakit.engine.adapter import Adapter


class LoraLinear(nn.Module):
    """A frozen linear layer plus `scale` times B A x, where A is (rank, in) and B (out, rank)."""

    def __init__(
        self,
        base: nn.Module,
        lora_a: nn.Parameter,
        lora_b: nn.Parameter,
        adapter: Adapter,
        siblings: Siblings | None = None,
    ) -> None:
        super().__init__()
        self.base = base
        self.lora_A, self.lora_B = lora_a, lora_b  # peft's names
        self._around = (adapter, siblings or Siblings())  # in a tuple, so that neither is a sub-module

    def forward(self, x: Tensor) -> Tensor:
        """The base's answer and the adapter's, in the input's number format."""
        adapter, siblings = self._around
        if adapter.strength == 0:
            answer: Tensor = self.base(x)
            return answer
        scale = adapter.scale * adapter.strength
        if adapter.fused and not (adapter.dropout and self.training):
            return siblings.answer(self, x, scale)
        answer = self.base(x)
        seen = functional.dropout(x, adapter.dropout, self.training) if adapter.dropout else x
        inner = functional.linear(seen, self.lora_A.to(x.dtype))
        return answer + functional.linear(inner, self.lora_B.to(x.dtype)) * scale


class Siblings:
    """Layers of one module, in the order in which they are called; those that are given one input answer together.

    Which are is seen in the first pass. Every answer is for the very input that was asked about: a layer that is
    called otherwise than then answers by itself.
    """

    def __init__(self) -> None:
        self._called: dict[LoraLinear, int] | None = {}  # in the first pass: with the number of the input
        self._last: weakref.ref[Tensor] | None = None
        self._led: dict[LoraLinear, _Few] = {}
        self._input: Tensor | None = None
        self._ready: dict[LoraLinear, Tensor] = {}

    def answer(self, layer: LoraLinear, x: Tensor, scale: float) -> Tensor:
        """What the layer answers to x (..., in)."""
        if self._input is x and layer in self._ready:
            answer = self._ready.pop(layer)
            if not self._ready:
                self._input = None
            return answer
        self._watch(layer, x)
        led = self._led.get(layer)
        if led is None:
            led = self._led[layer] = _Few((layer,))
        if led.plain is None:
            added: Tensor = _Added.apply(x, layer.lora_A, led, scale, layer.base(x))  # type: ignore[no-untyped-call]
            return added
        answers: tuple[Tensor, ...] = _Together.apply(x, layer.lora_A, led, scale)  # type: ignore[no-untyped-call]
        if len(answers) > 1:
            self._input, self._ready = x, dict(zip(led.layers[1:], answers[1:], strict=True))
        return answers[0]

    def _watch(self, layer: LoraLinear, x: Tensor) -> None:
        """Note in the first pass whether the layer is given what the one before it was given."""
        if self._called is None or layer in self._called:
            return
        plain = type(layer.base) is nn.Linear
        same = self._last is not None and self._last() is x and plain
        self._called[layer] = max(self._called.values(), default=0) + (not same)
        self._last = weakref.ref(x) if plain else None

    def settle(self) -> bool:
        """Let layers answer together from now on, where the first pass was seen; whether it was.

        Never between a pass and its backward pass, where blocks that recompute must do as they did.
        """
        if not self._called:
            return self._called is None
        runs: dict[int, list[LoraLinear]] = {}
        for one, number in self._called.items():
            runs.setdefault(number, []).append(one)
        self._led = {run[0]: _Few(tuple(run)) for run in runs.values()}
        self._called = self._last = None
        return True


class _Few:
    """Layers that answer together, and their tensors at hand: looking them up in a module takes longer than using them.

    Views of the flat buffers stay true whatever is written there. `plain` are the bases' weights and biases, None where
    a base is no plain layer.
    """

    def __init__(self, layers: tuple[LoraLinear, ...]) -> None:
        self.layers = layers
        bases = [layer.base for layer in layers]
        self.plain = [base._parameters for base in bases] if all(type(base) is nn.Linear for base in bases) else None
        self.downs = [layer.lora_A.detach() for layer in layers]
        self.ups = [layer.lora_B.detach() for layer in layers]
        self.turned = [up.t() for up in self.ups]
        self.ranks = [len(down) for down in self.downs]
        self.halves = [(layer.lora_A, layer.lora_B) for layer in layers]

    def told(self, dtype: torch.dtype) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """A of all, B of each, and B^T of each, in a number format."""
        down = self.downs[0] if len(self.downs) == 1 else torch.cat(self.downs)
        if dtype == down.dtype:
            return down, self.ups, self.turned
        ups = [up.to(dtype) for up in self.ups]
        return down.to(dtype), ups, [up.t() for up in ups]


def _gather(half: Tensor, left: Tensor, right: Tensor, scale: float) -> None:
    """Add scale left^T right to a half's gradient, in place."""
    assert half.grad is not None
    if half.dtype == left.dtype:
        half.grad.addmm_(left.t(), right, alpha=scale)
    else:
        half.grad.add_(torch.mm(left.t(), right), alpha=scale)


class _Together(torch.autograd.Function):
    """x W^T + b + scale (x A^T) B^T of a few layers for one x (..., in); the anchor is what makes the answers learn."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, anchor: Tensor, few: _Few, scale: float) -> tuple[Tensor, ...]:
        rows = x.reshape(-1, x.shape[-1])
        down, ups, turned = few.told(x.dtype)
        inner = functional.linear(rows, down)
        ctx.save_for_backward(rows, inner)
        ctx.held = (few, scale, down, ups)
        parts = torch.split(inner, few.ranks, 1) if len(turned) > 1 else (inner,)
        answers, leading = [], x.shape[:-1]
        assert few.plain is not None
        for base, up, part in zip(few.plain, turned, parts, strict=True):
            answer = functional.linear(rows, base["weight"], base["bias"])  # type: ignore[arg-type]
            answers.append(answer.addmm_(part, up, alpha=scale).view(*leading, answer.shape[1]))
        return tuple(answers)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        rows, inner = ctx.saved_tensors
        few, scale, down, ups = ctx.held
        wanted, seen, backs = ctx.needs_input_grad[0], None, []
        parts = torch.split(inner, few.ranks, 1) if len(ups) > 1 else (inner,)
        for grad, base, up, part, (lora_a, lora_b) in zip(grads, few.plain, ups, parts, few.halves, strict=True):
            said = grad.reshape(-1, grad.shape[-1])
            back = said.mm(up)
            _gather(lora_b, said, part, scale)
            _gather(lora_a, back, rows, scale)
            backs.append(back)
            if wanted:
                seen = said.mm(base["weight"]) if seen is None else seen.addmm_(said, base["weight"])
        if seen is None:
            return None, None, None, None
        seen.addmm_(backs[0] if len(backs) == 1 else torch.cat(backs, 1), down, alpha=scale)
        return seen.view(*grads[0].shape[:-1], rows.shape[1]), None, None, None


class _Added(torch.autograd.Function):
    """answer + scale (x A^T) B^T of one layer for any x (..., in) and answer (..., out)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, anchor: Tensor, few: _Few, scale: float, answer: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        down, ups, turned = few.told(x.dtype)
        inner = functional.linear(rows, down)
        ctx.save_for_backward(rows, inner)
        ctx.held = (few, scale, down, ups)
        flat = answer.reshape(-1, answer.shape[-1])
        return torch.addmm(flat, inner, turned[0], alpha=scale).view(answer.shape)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        rows, inner = ctx.saved_tensors
        few, scale, down, ups = ctx.held
        said = grads[0].reshape(-1, grads[0].shape[-1])
        back, (lora_a, lora_b) = said.mm(ups[0]), few.halves[0]
        _gather(lora_b, said, inner, scale)
        _gather(lora_a, back, rows, scale)
        if not ctx.needs_input_grad[0]:
            return None, None, None, None, grads[0]
        return back.mm(down).mul_(scale).view(*grads[0].shape[:-1], rows.shape[1]), None, None, None, grads[0]
