"""What of a pass through a model cannot be replayed without the host, seen in the operations of one that was made."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

COLLECTIVE = ("c10d", "_c10d_functional")


class Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Looks at every operation on tensors of a device, forward and backward, while it is entered.

    `obstacles` are reasons why these operations alone would not do the same for other values. `outside` is all memory
    that they read or wrote and that was there before: while it is held, nobody else is given its place.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._device = device.type
        self._made: set[int] = set()
        self.obstacles: dict[str, None] = {}
        self.outside: dict[int, torch.UntypedStorage] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        """The operation itself, looked at."""
        told = dict(kwargs or {})
        given = list(tensors((args, told)))
        for one in given:
            storage = one.untyped_storage()
            if storage._cdata not in self._made:
                self.outside.setdefault(storage._cdata, storage)
        self._look(func, args, told)
        answer = func(*args, **told)
        made = list(tensors(answer))
        self._made |= {one.untyped_storage()._cdata for one in made} - self.outside.keys()
        self._look_at_places(func, given, made)
        return answer

    def _look(self, func: Any, args: Sequence[Any], told: Mapping[str, Any]) -> None:
        names = [one.name for one in func._schema.arguments]
        named = {**dict(zip(names, args, strict=False)), **told}
        if torch.Tag.data_dependent_output in func.tags:
            self._note(func, "the host reads a value of a tensor")
        if _picks(named) if "indices" in named else torch.Tag.dynamic_output_shape in func.tags:
            self._note(func, "the size of a tensor depends on values")
        drops = named.get("dropout_p", 0.0) if "dropout_p" in names else 1.0  # attention draws nothing where it is 0
        if torch.Tag.nondeterministic_seeded in func.tags and drops:
            self._note(func, "random numbers are drawn")
        if func.namespace in COLLECTIVE:
            self._note(func, "processes talk to one another")

    def _look_at_places(self, func: Any, given: Sequence[Tensor], made: Sequence[Tensor]) -> None:
        places = {one.device.type for one in (*given, *made)}
        if func is torch.ops.aten.lift_fresh.default and places == {self._device}:
            self._note(func, "a tensor is made of the host's numbers")
        if len(places) > 1:
            self._note(func, f"tensors lie in different places ({', '.join(sorted(places))})")

    def _note(self, func: Any, why: str) -> None:
        self.obstacles[f"{why} ({func})"] = None


def _picks(named: Mapping[str, Any]) -> bool:
    """Whether an operation picks what is true, of which nobody knows how much it is, and not what has a number."""
    return any(one.dtype in (torch.bool, torch.uint8) for one in tensors(named["indices"]))


def tensors(value: Any) -> Iterator[Tensor]:
    """The tensors in arguments or an answer of an operation."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from tensors(tuple(value.values()))
    elif isinstance(value, (list, tuple)):
        for one in value:
            yield from tensors(one)
