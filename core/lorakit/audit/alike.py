"""Which pictures are the same file, and which show nearly the same, found without comparing each with each.

Two pictures are nearly the same where their difference hashes differ in few bits and their colours agree. Hashes are
cut into one band more than bits may differ, so that two near ones share at least one band: only those that share one
are compared. Bands take every ninth bit, because neighbouring bits are often equal in many pictures.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence

BITS = 128
NEAR = 8  # bits in which the hashes of two pictures may differ
BANDS = NEAR + 1
SHIFTED = 40.0  # most by which the mean of a colour may differ, of 255: another exposure
COLOURED = 9.0  # most by which colours differ on average once their means agree, of 255
RECENT = 64  # pictures of one hash that the next is compared with
Group = tuple[str, ...]


def same(digests: Mapping[str, str]) -> list[Group]:
    """Groups of names with one digest, in the order of their first members."""
    return _groups(digests, digests.values())


def near(hashes: Mapping[str, str], colours: Mapping[str, str]) -> list[Group]:
    """Groups of names whose pictures are nearly the same; both are hexadecimal, by name."""
    marks = {name: bytes.fromhex(colours[name]) for name in hashes}
    members: defaultdict[int, list[str]] = defaultdict(list)
    for name, text in hashes.items():
        members[int(text, 16)].append(name)
    joined = _Joined(hashes)
    heads: dict[int, list[str]] = {}
    for value, names in members.items():
        heads[value] = _within(names, marks, joined)
    for one, other in _close_pairs(list(members)):
        for first in heads[one][:RECENT]:
            for second in heads[other][:RECENT]:
                if joined.head(first) != joined.head(second) and agree(marks[first], marks[second]):
                    joined.join(first, second)
    return _groups(hashes, map(joined.head, hashes))


def _groups(names: Iterable[str], keys: Iterable[str]) -> list[Group]:
    found: defaultdict[str, list[str]] = defaultdict(list)
    for name, key in zip(names, keys, strict=True):
        found[key].append(name)
    return [tuple(group) for group in found.values() if len(group) > 1]


def _within(names: Sequence[str], marks: Mapping[str, bytes], joined: _Joined) -> list[str]:
    """Join names of one hash whose colours agree; one of each kind is returned."""
    heads: list[str] = []
    for name in names:
        for head in heads[-RECENT:]:
            if agree(marks[head], marks[name]):
                joined.join(head, name)
                break
        else:
            heads.append(name)
    return heads


def _close_pairs(values: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Pairs of hashes that differ in at most `NEAR` bits, once each: in the first band that they share."""
    masks = [sum(1 << bit for bit in range(band, BITS, BANDS)) for band in range(BANDS)]
    for band, mask in enumerate(masks):
        buckets: defaultdict[int, list[int]] = defaultdict(list)
        for value in values:
            buckets[value & mask].append(value)
        for bucket in buckets.values():
            for place, one in enumerate(bucket):
                for other in bucket[place + 1 :]:
                    apart = one ^ other
                    if apart.bit_count() <= NEAR and all(apart & earlier for earlier in masks[:band]):
                        yield one, other


def apart(one: str, other: str) -> int:
    """Bits in which two hashes differ, both in hexadecimal."""
    return (int(one, 16) ^ int(other, 16)).bit_count()


def agree(one: bytes, other: bytes) -> bool:
    """Whether the colours of two pictures differ by no more than exposure and compression do."""
    spots = len(one) // 3
    for channel in range(3):
        differences = [a - b for a, b in zip(one[channel::3], other[channel::3], strict=True)]
        mean = sum(differences) / spots
        if abs(mean) > SHIFTED or sum(abs(one - mean) for one in differences) / spots > COLOURED:
            return False
    return True


class _Joined:
    """Names that belong together, each group known by one of its own."""

    def __init__(self, names: Iterable[str]) -> None:
        self._above = {name: name for name in names}

    def head(self, name: str) -> str:
        above = self._above
        while above[name] != name:
            above[name] = above[above[name]]
            name = above[name]
        return name

    def join(self, one: str, other: str) -> None:
        self._above[self.head(other)] = self.head(one)
