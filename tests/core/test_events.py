import dataclasses
import json
import math
import typing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorakit import events
from lorakit.errors import NewerError
from lorakit.events import (
    KINDS,
    VERSION,
    Event,
    PreviewDrawn,
    RunStarted,
    Unknown,
    UpdateFinished,
    Validated,
    Warned,
)
from lorakit.history import EVENTS, events_of
from lorakit.secret import redacted

TEXT = st.text(max_size=20).filter(lambda text: redacted(json.dumps(text)) == json.dumps(text))
NUMBER = st.floats(allow_nan=False)


def values(kind: object) -> st.SearchStrategy:
    """Values of a field of this type."""
    if kind is float:
        return NUMBER
    if kind is bool:
        return st.booleans()
    if kind is int:
        return st.integers()
    if kind is str:
        return TEXT
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Literal:
        return st.sampled_from(inner)
    if origin is tuple and inner[-1] is Ellipsis:
        return st.lists(values(inner[0]), max_size=3).map(tuple)
    if origin is tuple:
        return st.tuples(*map(values, inner))
    return st.one_of(*(st.none() if one is type(None) else values(one) for one in inner))


def any_of(kind: type[Event]) -> st.SearchStrategy:
    """Any event of this kind."""
    types = typing.get_type_hints(kind, vars(events))
    return st.builds(kind, **{one.name: values(types[one.name]) for one in dataclasses.fields(kind)})


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_json_both_ways(kind):
    @given(any_of(kind))
    def check(event):
        line = event.to_json()
        table = json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
        assert "\n" not in line
        assert (table["event"], table["version"]) == (kind.__name__, VERSION)
        again = Event.from_json(line)
        assert again == event
        assert type(again) is kind
        assert hash(again) == hash(event)
        assert again.to_json() == line

    check()


def test_what_is_no_number_comes_back_as_such():
    told = dict.fromkeys((one.name for one in dataclasses.fields(Validated)), math.nan)
    again = Event.from_json(Validated(**{**told, "loss_by_level": (math.nan, math.inf), "update": 1}).to_json())
    assert math.isnan(again.loss)
    assert math.isnan(again.loss_by_level[0])
    assert again.loss_by_level[1] == math.inf


def test_every_kind_is_known():
    assert set(KINDS.values()) == set(Event.__subclasses__()) - {Unknown}
    assert {UpdateFinished, PreviewDrawn, RunStarted, Warned} <= set(KINDS.values())


def test_events_are_frozen_and_know_when_they_happened():
    first, second = Warned(message="a"), Warned(message="b")
    assert 0 < first.time <= second.time
    with pytest.raises(dataclasses.FrozenInstanceError):
        first.message = "c"


def changed(one, **more):
    return json.dumps({**json.loads(one.to_json()), **more})


def test_a_field_of_a_later_lorakit_is_passed_over():
    event = Warned(message="hot", time=1.0)
    assert Event.from_json(changed(event, colour="red")) == event


def test_an_event_of_a_later_lorakit_is_unknown_and_keeps_its_line():
    line = changed(Warned(message="hot", time=1.5), event="Sang", song="a shanty")
    event = Event.from_json(line + "\n")
    assert event == Unknown(line=line, time=1.5)
    assert event.to_json() == line
    assert Event.from_json(event.to_json()) == event


def test_a_newer_form_is_refused_and_so_is_a_run_that_has_it(tmp_path):
    line = changed(Warned(message="hot"), version=VERSION + 1)
    with pytest.raises(NewerError, match=r"form 2, and this lorakit reads forms up to 1\. Update lorakit"):
        Event.from_json(line)
    (tmp_path / EVENTS).write_text(Warned(message="a", time=1).to_json() + '\n{"event": "Wa\n' + line + "\n")
    read = events_of(tmp_path)
    assert next(read) == Warned(message="a", time=1)
    with pytest.raises(NewerError):
        next(read)


@pytest.mark.parametrize("line", ["", "[]", "{}", '{"event": 3, "version": 1}', '{"event": "Warned", "version": 1}'])
def test_what_is_no_event_is_a_value_error(line):
    with pytest.raises(ValueError):
        Event.from_json(line)
