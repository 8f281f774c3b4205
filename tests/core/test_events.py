import dataclasses
import json

import pytest

from lorakit.events import KINDS, Event, PreviewDrawn, RunStarted, UpdateFinished, Warned

EXAMPLES = {
    "str": "somewhere, Zoë\n",
    "int": 3,
    "int | None": 4,
    "bool": True,
    "float": 0.1,
    "float | None": 0.2,
    "Phase": "cache text",
    "AlarmKind": "loss spike",
    "tuple[float, ...]": (0.0, 0.5),
    "tuple[str, ...]": ("train.updates = 8, was 4",),
    "tuple[tuple[str, str], ...]": (("torch", "2.9"), ("lorakit", "0.1")),
}


def example(kind):
    """An event of this kind in which no field has its default."""
    return kind(**{field.name: EXAMPLES[field.type] for field in dataclasses.fields(kind)})


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_json_both_ways(kind):
    event = example(kind)
    line = event.to_json()
    assert "\n" not in line
    assert json.loads(line)["event"] == kind.__name__
    assert Event.from_json(line) == event
    assert type(Event.from_json(line)) is kind


def test_every_kind_is_known():
    assert set(KINDS.values()) == set(Event.__subclasses__())
    assert {UpdateFinished, PreviewDrawn, RunStarted, Warned} <= set(KINDS.values())


def test_events_are_frozen_and_know_when_they_happened():
    first, second = Warned(message="a"), Warned(message="b")
    assert 0 < first.time <= second.time
    with pytest.raises(dataclasses.FrozenInstanceError):
        first.message = "c"


def test_a_key_of_a_later_version_is_passed_over():
    line = json.dumps({**json.loads(Warned(message="hot", time=1.0).to_json()), "colour": "red"})
    assert Event.from_json(line) == Warned(message="hot", time=1.0)
