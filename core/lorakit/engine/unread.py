"""How nothing waits for the device: tensors on their way to it, numbers on their way back, weights that stay."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lorakit.order import Turn


def onto(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on a device; a GPU fetches it from pinned memory by itself, after all that it was given before."""
    if waits(device) and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def waits(device: torch.device) -> bool:
    """Whether reading numbers from a device means waiting for what it was given."""
    return device.type == "cuda"


class Arriving:
    """Numbers on their way to the host; reading waits for them alone, not for what the device was given later."""

    def __init__(self, numbers: Tensor) -> None:
        self._event: torch.cuda.Event | None = None
        self._numbers = numbers
        if waits(numbers.device):
            self._numbers = torch.empty(numbers.shape, dtype=numbers.dtype, pin_memory=True)
            self._numbers.copy_(numbers, non_blocking=True)
            self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._event.record()

    def read(self) -> list[float]:
        """The numbers."""
        if self._event is not None:
            self._event.synchronize()
        found: list[float] = self._numbers.tolist()
        return found


@dataclass(frozen=True, slots=True)
class Unread:
    """An update whose numbers nobody has read: the losses of its passes, then norms; and what is known without them."""

    update: int
    turns: Sequence[Turn]
    drawn: Sequence[tuple[float, float]]
    learning_rate: float
    numbers: Arriving


class Guard:
    """Has an optimizer leave weights and moments alone, on the device, from the first numbers on that are not finite.

    torch's fused optimizers look at `found_inf` for that, which torch.amp.GradScaler sets.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, device: torch.device) -> None:
        self._optimizer = optimizer
        self.spoiled = torch.zeros((), device=device)
        """1 once such numbers came, 0 before."""

    def see(self, numbers: Tensor) -> None:
        """Look at the numbers of an update, before its step."""
        self.spoiled = torch.maximum(self.spoiled, 1 - torch.isfinite(numbers).all().float())
        self._optimizer.found_inf = self.spoiled  # type: ignore[attr-defined]
