"""The table of updates: as a sequence of the events it was told, each number once."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorakit.events import UpdateFinished
from lorakit.update_table import UpdateTable


def update(number, **fields):
    return UpdateFinished(
        **{"time": 1.5, "update": number, "passes": 4 * number, "epoch": 0.5, "loss": 0.25, "learning_rate": 1e-4,
           "grad_norm": 2.0, "seconds": 0.125, "memory": 2**40, **fields}
    )  # fmt: skip


@given(st.lists(st.tuples(st.integers(1, 40), st.floats(allow_nan=False)), max_size=60))
def test_it_holds_what_was_told_last_of_each_number(told):
    events = [update(number, loss=loss) for number, loss in told]
    table, last = UpdateTable(events), {one.update: one for one in events}
    expected = [last[number] for number in sorted(last)]
    assert list(table) == expected
    assert len(table) == len(expected)
    assert [table[place] for place in range(len(table))] == expected
    assert table[1:] == expected[1:]
    assert list(table.column("loss")) == [one.loss for one in expected]


def test_whole_numbers_stay_whole():
    (found,) = UpdateTable([update(3)])
    assert [type(value) for value in (found.update, found.passes, found.memory)] == [int, int, int]


@pytest.mark.parametrize("wrong", [{"loss": None}, {"memory": "much"}, {"memory": 2**70}, {"passes": 1.5}])
def test_a_row_that_is_none_is_an_error_and_leaves_the_table_as_it_was(wrong):
    table = UpdateTable([update(1)])
    with pytest.raises(ValueError, match="no whole update"):
        table.add(update(2, **wrong))
    assert list(table) == [update(1)]


def test_it_grows_while_somebody_looks_at_a_column():
    table = UpdateTable([update(1)])
    losses = table.column("loss")
    table.add(update(2))
    assert len(losses) == len(table) == 2
