"""A base whose blocks are sharded: each process holds a part of every block's weights, for a base that fits no card.

torch's FSDP2 gathers a block before its forward pass, and again before its backward pass, where it may be recomputed.
It shards parameters alone, so whatever else holds a weight becomes a parameter, which nobody trains. Nothing of the
adapter is sharded: it is put on afterwards.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.fsdp as fsdp
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils._pytree import tree_map

from lorakit.engine.parts import Denoiser
from lorakit.engine.ranks import Ranks
from lorakit.errors import ModelError

WHOLE = 0.02
"""Share of a block's bytes that may lie whole in every process: numbers that are alone, which FSDP2 does not shard."""

GATHER = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
"""torch 2.13 has it under another name."""


@dataclass(frozen=True, slots=True)
class Sharding:
    """The processes among which blocks are sharded, and how the blocks are held, for messages."""

    ranks: Ranks
    quantization: str

    def after(self, filled: Iterator[str], denoiser: Denoiser) -> Iterator[str]:
        """The same names of blocks that were filled one after another; of each this process keeps its part."""
        for block, name in zip(denoiser.blocks, filled, strict=True):
            self.take(name, block)
            yield name

    def take(self, name: str, block: nn.Module) -> None:
        """Freeze a block, and keep this process' part of it; ModelError where it cannot be sharded."""
        as_parameters(block)
        block.requires_grad_(False)
        try:
            made: Any = fsdp.fully_shard(block, mesh=self.ranks.mesh, reshard_after_forward=True)
            made.set_custom_all_gather(_Gather(self.ranks))
            block.register_forward_hook(_apart, prepend=True)
        except (NotImplementedError, RuntimeError, TypeError, ValueError, AssertionError, AttributeError) as error:
            raise self._refused(name, f"{type(error).__name__}: {str(error).splitlines()[0]}") from error
        left = [(path, one) for path, one in _tensors(block) if not isinstance(one, DTensor)]
        if _bytes(one for _, one in left) > WHOLE * _bytes(one for _, one in _tensors(block)):
            raise self._refused(name, f"{max(left, key=lambda one: one[1].nbytes)[0]} stays whole")

    def finish(self, denoiser: Denoiser) -> None:
        """Put what lies outside the blocks whole on the device, and let torch look ahead over all blocks."""
        device = self.ranks.device
        denoiser.module._apply(lambda one: one if isinstance(one, DTensor) else one.to(device))  # type: ignore[no-untyped-call]
        fsdp.fully_shard(denoiser.module, mesh=self.ranks.mesh, ignored_params=set(denoiser.module.parameters()))
        denoiser.module.register_forward_hook(_apart, prepend=True)

    def note(self, denoiser: Denoiser) -> str:
        """What this process holds, in words."""
        return f"a part of {len(denoiser.blocks)} blocks in each of {self.ranks.count} processes"

    def _refused(self, name: str, why: str) -> ModelError:
        return ModelError(
            f"{name}, held as {self.quantization}, cannot be sharded",
            where="train.sharding",
            why=why,
            fix="Choose another quantization.name, or train.sharding = 'replicated'.",
        )


class _Gather:
    """torch's own gathering, whose failure says who was lost."""

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks

    def allocate(self, size: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        return torch.empty(*size, dtype=dtype, device=device)

    def __call__(
        self, output_tensor: Tensor, input_tensor: Tensor, group: dist.ProcessGroup, async_op: bool = False
    ) -> Any:
        return self._ranks.joint(lambda: GATHER(output_tensor, input_tensor, group=group, async_op=async_op))


def _apart(module: nn.Module, given: Any, answer: Any) -> Any:
    """A module's answer, that which is a view of something copied: FSDP2 warns of hooks on views, which can be lost."""
    return tree_map(lambda one: one.clone() if isinstance(one, Tensor) and one._base is not None else one, answer)


def as_parameters(block: nn.Module) -> None:
    """Let every buffer of a block that is no lone number be a frozen parameter, and every one lie without gaps."""
    for module in block.modules():
        for name, one in list(module.named_buffers(recurse=False)):
            if one.ndim:
                delattr(module, name)
                module.register_parameter(name, nn.Parameter(one, requires_grad=False))
        for one in module.parameters(recurse=False):
            one.data = one.data.contiguous()


def held(block: nn.Module) -> int:
    """Bytes of a block that lie in this process between two passes."""
    return _bytes(one.to_local() if isinstance(one, DTensor) else one for _, one in _tensors(block))


def _tensors(block: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from block.named_parameters()
    yield from block.named_buffers()


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(one.numel() * one.element_size() for one in tensors)
