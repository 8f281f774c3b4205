"""Inputs on their way through the model block by block, in three streams side by side.

The teacher's passes are in full precision; the student's go through the corrected blocks, so that each block is fitted
on what it will really be given; the plain ones go through blocks that are quantized and not corrected, for comparison.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lorakit.engine.fitting import answer, watched
from lorakit.engine.quantizers import linears
from lorakit.engine.walk import Halt, Walk
from lorakit.errors import ModelError

MEASURED = 8  # every so manieth input only measures


@dataclass(frozen=True, slots=True)
class Shares:
    """Numbers of inputs by what they serve: to fit a block on, to fit the whole on, and to measure only."""

    fitted: tuple[int, ...]
    taught: tuple[int, ...]
    measured: tuple[int, ...]

    @staticmethod
    def of(count: int, fitted: int) -> Shares:
        """Shares of `count` inputs, each spread over all of them, at most `fitted` of them for the blocks."""
        measured = tuple(range(MEASURED - 1, count, MEASURED)) or (count - 1,)
        taught = tuple(number for number in range(count) if number not in measured)
        some = min(fitted, len(taught))
        return Shares(tuple(taught[place * len(taught) // some] for place in range(some)), taught, measured)


class Streams:
    """Passes halted before the next block: the teacher's of every input, the others' of those that need them."""

    def __init__(self, start: Callable[[int], Walk], count: int, shares: Shares) -> None:
        self.shares = shares
        self.teacher = [start(number) for number in range(count)]
        self.student = {number: start(number) for number in (*shares.fitted, *shares.measured)}
        self.plain = {number: start(number) for number in shares.measured}

    def pairs(self) -> list[tuple[Halt, Halt]]:
        """Where the teacher's and the student's passes stand that a block is fitted on."""
        return [(_halt(self.teacher[number]), _halt(self.student[number])) for number in self.shares.fitted]

    def pass_plain(self, teacher: nn.Module, block: nn.Module) -> dict[str, float]:
        """Let the plain passes through an uncorrected block; relative errors of its layers by name."""
        errors = self._errors(teacher, block, self.plain)
        for walk in self.plain.values():
            walk.go_on(answer(block, _halt(walk)))
        return errors

    def pass_student(self, teacher: nn.Module, block: nn.Module) -> dict[str, float]:
        """Let the student's and the teacher's passes through their blocks; relative errors of the student's layers."""
        errors = self._errors(teacher, block, self.student)
        for walk in self.student.values():
            walk.go_on(answer(block, _halt(walk)))
        for walk in self.teacher:
            walk.go_on(answer(teacher, _halt(walk)))
        return errors

    def answers(self) -> list[Tensor]:
        """What the teacher answered to every input, once all blocks are passed."""
        return [_answer(walk) for walk in self.teacher]

    def plain_error(self) -> float:
        """The relative error of the uncorrected model's answers, once all blocks are passed."""
        wanted = torch.cat([_answer(self.teacher[number]).float().flatten() for number in self.plain])
        found = torch.cat([_answer(walk).float().flatten() for walk in self.plain.values()])
        return float((found - wanted).norm() / wanted.norm())

    def _errors(self, teacher: nn.Module, block: nn.Module, walks: dict[int, Walk]) -> dict[str, float]:
        names = [name for name, _ in linears(teacher)]
        sums = {name: torch.zeros(2, dtype=torch.float64) for name in names}
        with watched(teacher, names) as full, watched(block, names) as own:
            for number in self.shares.measured:
                answer(teacher, _halt(self.teacher[number]))
                answer(block, _halt(walks[number]))
                for name in names:
                    wanted, found = full[name][1].float(), own[name][1].float()
                    sums[name] += torch.stack([(found - wanted).square().sum(), wanted.square().sum()]).double().cpu()
        return {name: float((off / size.clamp_min(1e-20)).sqrt()) for name, (off, size) in sums.items()}


def _halt(walk: Walk) -> Halt:
    if walk.halt is None:
        raise ModelError("the model does not pass through all of its blocks", fix="This is a bug of the family.")
    return walk.halt


def _answer(walk: Walk) -> Tensor:
    if walk.answer is None:
        raise ModelError("the model passes through more blocks than it names", fix="This is a bug of the family.")
    return walk.answer
