"""Which pictures are alike, found without comparing each with each."""

import random

from hypothesis import given
from hypothesis import strategies as st

from lorakit.audit import alike

GREY = "80" * 48


def groups(hashes, colours=None):
    names = [f"{number}" for number in range(len(hashes))]
    by_name = {name: f"{value:032x}" for name, value in zip(names, hashes, strict=True)}
    return alike.near(
        by_name, dict.fromkeys(names, GREY) if colours is None else dict(zip(names, colours, strict=True))
    )


@given(st.integers(0, 2**128 - 1), st.sets(st.integers(0, 127), max_size=20))
def test_hashes_that_differ_in_few_bits_are_found_and_others_are_not(value, flipped):
    other = value
    for bit in flipped:
        other ^= 1 << bit
    assert groups([value, other]) == ([("0", "1")] if len(flipped) <= alike.NEAR else [])


@given(st.lists(st.integers(0, 2**12 - 1), max_size=30))
def test_groups_are_those_of_comparing_each_with_each(values):
    spread = [value * (2**100 + 1) for value in values]  # each bit twice
    left, joined = set(range(len(spread))), []
    while left:
        members, fresh = set(), {min(left)}
        while fresh:
            members |= fresh
            fresh = {
                one for one in left - members for other in members if (spread[one] ^ spread[other]).bit_count() <= 8
            }
        left -= members
        joined.append(tuple(str(one) for one in sorted(members)))
    assert sorted(groups(spread)) == sorted(group for group in joined if len(group) > 1)


def test_other_colours_are_another_picture():
    red, blue = "ff0000" * 16, "0000ff" * 16
    assert groups([5, 5, 5], [red, blue, red]) == [("0", "2")]
    assert groups([5, 4], ["808080" * 16, "9090a0" * 16]) == [("0", "1")]  # another exposure


def test_few_pairs_are_compared():
    """Ten thousand hashes have 50 million pairs; those that are compared are counted by what they cost."""
    draw = random.Random(1)

    class Counted(int):
        compared = 0

        def __xor__(self, other) -> int:
            Counted.compared += 1
            return int(self) ^ int(other)

    values = [Counted(draw.getrandbits(128)) for _ in range(10_000)]
    assert list(alike._close_pairs(values)) == []
    assert Counted.compared < 100_000
