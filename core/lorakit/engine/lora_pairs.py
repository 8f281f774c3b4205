"""LoRA halves by diffusers' names, whatever a file calls them, and the arithmetic that is exact on them.

Effects are scale times B A. Scales are folded, and pairs joined, in fp32; what needs neither keeps its bits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce

import torch
from safetensors import SafetensorError
from torch import Tensor

from lorakit.engine.headers import opened
from lorakit.engine.lora_norms import broken
from lorakit.errors import ModelError
from lorakit.lora_facts import Facts
from lorakit.words import count, some


@dataclass(frozen=True, slots=True)
class Pair:
    """A (rank, inputs) and B (outputs, rank) of a layer, and what B A is multiplied with."""

    lora_a: Tensor
    lora_b: Tensor
    scale: float = 1.0

    @property
    def rank(self) -> int:
        """The number of rows of A."""
        return self.lora_a.shape[0]

    def at_scale(self, scale: float) -> Pair:
        """The same effect at another scale: B takes the difference, in fp32."""
        if scale == self.scale:
            return self
        return Pair(self.lora_a, self.lora_b.float() * (self.scale / scale), scale)

    def exact(self) -> Pair:
        """The same effect at scale 1, in fp32 or in what is finer."""
        dtype = torch.promote_types(self.lora_b.dtype, torch.float32)
        return Pair(self.lora_a.to(dtype), self.lora_b.to(dtype) * self.scale)


Pairs = Mapping[str, Pair]
"""Pairs by the layer's name of diffusers, after its component."""


def load(facts: Facts) -> dict[str, Pair]:
    """Every pair of a file; layers that are fused there come apart."""
    _refuse(facts)
    found: dict[str, Pair] = {}
    try:
        with opened(facts.file) as file:
            for one in facts.layers:
                pair = Pair(file.get_tensor(one.down), file.get_tensor(one.up), one.scale)
                if pair.lora_a.dim() != 2 or pair.lora_b.dim() != 2:
                    raise ModelError(f"{one.name} of {facts.file} is a convolution", why="only linear layers are known")
                found.update(zip(one.layers, apart(pair, len(one.layers), one.name), strict=True))
    except SafetensorError as error:
        raise broken(facts, error) from error
    if len(found) < sum(len(one.layers) for one in facts.layers):
        raise ModelError(f"{facts.file} names a layer twice", fix="Look at its layers: `lorakit inspect --json`.")
    return found


def _refuse(facts: Facts) -> None:
    """Raise ModelError where the file is more, or other, than halves of layers that one family knows."""
    if facts.family is None:
        known = " or ".join(one.family.name for one in facts.names)
        raise ModelError(
            f"{facts.file} is not certainly of one family",
            why=f"{known} may be meant" if known else "no installed family knows its layers",
            fix="Say which with --family." if known else "Look at its layers: `lorakit inspect`.",
        )
    if facts.unknown:
        raise ModelError(
            f"{facts.file} holds {count(len(facts.unknown), 'layer')} that {facts.family.title} does not know",
            why=some(facts.unknown, 3),
        )
    if facts.others:
        raise ModelError(
            f"{facts.file} holds more than LoRA halves",
            why=", ".join(f"{end} ({number})" for end, number in facts.others.items()),
            fix="Only plain LoRA is read: no DoRA, LoHa, LoKr or full differences.",
        )


def apart(pair: Pair, parts: int, name: str = "") -> list[Pair]:
    """The pairs of the layers that one fused layer stands for: all but the last have as many rows as inputs.

    Where the fused layer is of joined ranks, each layer gets its own rank back.
    """
    if parts == 1:
        return [pair]
    inputs, rows = pair.lora_a.shape[1], pair.lora_b.shape[0]
    last = rows - (parts - 1) * inputs
    if last <= 0:
        raise ModelError(f"{name} has {rows} rows, too few for {parts} layers of {inputs}")
    halves = torch.split(pair.lora_b, [*[inputs] * (parts - 1), last])
    if pair.rank % parts == 0:
        own = pair.rank // parts
        blocks = [half[:, own * number : own * (number + 1)] for number, half in enumerate(halves)]
        if all(half.count_nonzero() == block.count_nonzero() for half, block in zip(halves, blocks, strict=True)):
            tops = torch.split(pair.lora_a, own)
            return [replace(pair, lora_a=top, lora_b=block) for top, block in zip(tops, blocks, strict=True)]
    return [replace(pair, lora_b=half) for half in halves]


def fused(pairs: Sequence[Pair | None], name: str) -> Pair:
    """One pair for a layer that fuses several: of the same rank where they share A, else of their ranks together."""
    known = [one for one in pairs if one is not None]
    if len(pairs) == 1:
        return known[0]
    if pairs[-1] is None:
        raise ModelError(
            f"{name} cannot be written",
            why="it is one layer of several in this layout, and the file has no halves for the last of them",
            fix="Use --layout diffusers.",
        )
    inputs, first = known[0].lora_a.shape[1], known[0]
    if any(one.scale != first.scale for one in known):
        known = [one.exact() for one in known]
    shared = all(torch.equal(one.lora_a, first.lora_a) for one in known)
    dtype = reduce(torch.promote_types, (one.lora_b.dtype for one in known))
    rank, column, given = first.rank if shared else sum(one.rank for one in known), 0, iter(known)
    rows = []
    for asked in pairs:
        one = next(given) if asked is not None else None
        row = torch.zeros(inputs if one is None else one.lora_b.shape[0], rank, dtype=dtype)
        if one is not None:
            row[:, column : column + one.rank] = one.lora_b
            column += 0 if shared else one.rank
        rows.append(row)
    lora_a = first.lora_a if shared else torch.cat([one.lora_a for one in known])
    return Pair(lora_a, torch.cat(rows), known[0].scale)


def weighted(pairs: Pairs, weight: float) -> dict[str, Pair]:
    """The same pairs with their effects multiplied; nothing is rounded."""
    return {
        name: one if weight == 1 else replace(one.exact(), lora_b=one.exact().lora_b * weight)
        for name, one in pairs.items()
    }


def joined(several: Sequence[Pairs]) -> dict[str, Pair]:
    """The sum of several LoRAs, by joining their ranks: [B1 B2] [A1; A2] is B1 A1 + B2 A2."""
    found: dict[str, Pair] = {}
    for name in dict.fromkeys(name for pairs in several for name in pairs):
        own = [pairs[name] for pairs in several if name in pairs]
        sizes = {(one.lora_a.shape[1], one.lora_b.shape[0]) for one in own}
        if len(sizes) > 1:
            raise ModelError(
                f"these files are not for the same base: {name} is {' and '.join(map(str, sorted(sizes)))}",
                fix="Merge files of one base.",
            )
        exact = [one.exact() for one in own]
        joint = Pair(torch.cat([one.lora_a for one in exact]), torch.cat([one.lora_b for one in exact], dim=1))
        found[name] = own[0] if len(own) == 1 else joint
    return found


@dataclass(frozen=True, slots=True)
class Resized:
    """Pairs of a smaller rank, the share of the squared norm that they keep, and the least share of any layer."""

    pairs: dict[str, Pair]
    energy: float
    least: float
    where: str


def resized(pairs: Pairs, rank: int) -> Resized:
    """The nearest LoRA of at most this rank; layers of a smaller one stay as they are."""
    found, kept, whole, least, where = dict[str, Pair](), 0.0, 0.0, 1.0, ""
    for name, pair in pairs.items():
        found[name], own, all_of_it = _cut(pair, rank)
        kept, whole = kept + own, whole + all_of_it
        share = own / all_of_it if all_of_it else 1.0
        if share < least:
            least, where = share, name
    return Resized(found, kept / whole if whole else 1.0, least, where)


def _cut(pair: Pair, rank: int) -> tuple[Pair, float, float]:
    """(the pair of the largest singular values, their squares' sum, that of all), by QR of both halves.

    With B = Q R and A^T = P S, the singular values of B A are those of R S^T, which is as small as the rank.
    """
    exact = pair.exact()
    first, inner = torch.linalg.qr(exact.lora_b.double())
    second, other = torch.linalg.qr(exact.lora_a.double().T)
    middle = inner @ other.T
    if pair.rank <= rank:
        energy = float(middle.square().sum())
        return pair, energy, energy
    left, values, right = torch.linalg.svd(middle)
    squares = values.square()
    rank = min(rank, len(values))
    root = values[:rank].sqrt()
    lora_b = (first @ left[:, :rank]) * root
    lora_a = root[:, None] * (right[:rank] @ second.T)
    made = Pair(lora_a.float(), lora_b.float())
    return made, float(squares[:rank].sum()), float(squares.sum())
