"""A run's history read while it is made: at any moment as one who reads it all from the start."""

import dataclasses

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lorakit import history
from lorakit.events import PhaseFinished, PhaseStarted, RunStopped, UpdateFinished, Warned
from tests.evidence.stories import tell, validated


def update(number, seconds=0.5):
    return UpdateFinished(
        update=number, passes=number, epoch=1.0, loss=1.0, learning_rate=1e-3, grad_norm=1.0, seconds=seconds
    )


def lines(events):
    return "".join(f"{one.to_json()}\n" for one in events)


def test_updates_that_follow_one_another_are_left_out_of_the_events(pictures, tmp_path):
    folder = tell(pictures, tmp_path, [validated(10)])
    begun, note, end = (
        PhaseStarted(phase="train"),
        Warned(message="careful"),
        RunStopped(update=4, folder="", reason=""),
    )
    told = [begun, update(1), update(2), note, update(3), update(4)]
    (folder / "events.jsonl").write_text(lines(told))
    found = history.read(folder)
    assert found.events == (begun, told[2], note, told[5])
    assert list(found.updates) == [one for one in told if isinstance(one, UpdateFinished)]
    with (folder / "events.jsonl").open("a") as file:
        file.write(lines([end]))
    assert history.read(folder).events == (begun, told[2], note, told[5], end)


def test_an_update_whose_numbers_are_none_is_no_update(pictures, tmp_path):
    folder = tell(pictures, tmp_path, [validated(10)])
    whole = update(1)
    (folder / "events.jsonl").write_text(lines([whole]) + lines([update(2)]).replace("0.5", '"soon"'))
    assert list(history.read(folder).updates) == [whole]


TOLD = st.one_of(
    st.builds(update, st.integers(1, 9), st.floats(0, 9)),
    st.builds(lambda note: Warned(message=note), st.text(max_size=8)),
    st.builds(lambda: PhaseFinished(phase="train", seconds=1.0)),
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.lists(TOLD, max_size=5), max_size=5), st.integers(1, 40))
def test_it_is_read_on_from_where_it_was_left(pictures, tmp_path_factory, parts, cut):
    """Whatever was written in between, and though the last line is still being written."""
    folder = tell(pictures, tmp_path_factory.mktemp("runs"), [validated(10)])
    file = folder / "events.jsonl"
    file.write_bytes(b"")
    reader = history.Reader(folder)
    for part in parts:
        whole = lines(part).encode()
        for piece in (whole[:-cut], whole[len(whole[:-cut]) :]):
            with file.open("ab") as made:
                made.write(piece)
            fresh = history.read(folder)
            found = reader.read()
            assert list(found.updates) == list(fresh.updates)
            assert dataclasses.replace(found, updates=fresh.updates) == fresh
