"""The updates of a run as columns of numbers: 20,000 of them are a megabyte and a half, as events they are eight."""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields
from typing import Any, overload

from lorakit.events import UpdateFinished

CODES = {"int": "q", "float": "d"}
"""Of the field's types, as `array` names them: eight bytes each."""
FIELDS = {one.name: CODES[str(one.type)] for one in fields(UpdateFinished)}


class UpdateTable(Sequence[UpdateFinished]):
    """`UpdateFinished` events by their number; one that was told twice, before and after a stop, is as it was last."""

    def __init__(self, told: Iterable[UpdateFinished] = ()) -> None:
        self._columns = {name: array(code) for name, code in FIELDS.items()}
        for one in told:
            self.add(one)

    def add(self, one: UpdateFinished) -> None:
        """Take an event in; ValueError where one of its numbers is none, or has more than eight bytes."""
        try:
            row = {name: array(code, [getattr(one, name)]) for name, code in FIELDS.items()}
        except (TypeError, OverflowError) as error:
            raise ValueError(f"it is no whole update: {error}") from error
        numbers = self._columns["update"]
        place = bisect_left(numbers, one.update)
        again = place < len(numbers) and numbers[place] == one.update
        for name, column in self._columns.items():
            column[place : place + again] = row[name]

    def column(self, name: str) -> Sequence[Any]:
        """One field of every update, such as `loss`."""
        return self._columns[name]  # and no view of it, which would forbid it to grow

    def __len__(self) -> int:
        return len(self._columns["update"])

    @overload
    def __getitem__(self, place: int) -> UpdateFinished: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[UpdateFinished]: ...
    def __getitem__(self, place: int | slice) -> UpdateFinished | Sequence[UpdateFinished]:
        if isinstance(place, slice):
            return [self[one] for one in range(len(self))[place]]
        return UpdateFinished(**{name: column[place] for name, column in self._columns.items()})

    def __iter__(self) -> Iterator[UpdateFinished]:
        for row in zip(*self._columns.values(), strict=True):
            yield UpdateFinished(**dict(zip(FIELDS, row, strict=True)))
