"""TensorBoard, Weights & Biases and MLflow as readers of a run's events, without a network."""

from __future__ import annotations

import logging
import sqlite3
from datetime import datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from lorakit import Kit, Part, hookimpl, trackers
from lorakit.cli import run as command_line
from lorakit.control import Control
from lorakit.errors import ConfigError, PluginError
from lorakit.events import (
    Alarm,
    PreviewDrawn,
    RunFinished,
    RunStarted,
    RunStopped,
    UpdateFinished,
    Validated,
    Warned,
)
from lorakit.trackers import VALIDATION

SECRET = "swordfish-0123456789abcdef0123456789abcdef"
SHORT = {
    "train": {"updates": 3},
    "trigger": "sks",
    "sampling": {"prompts": [f"a ring {SECRET}"], "every": 2, "strengths": []},
    "validation": {"every": 3, "pictures": 1},
    "save": {"every": 1},
}


def train_stopped(kit, plan, name):
    """A run that is stopped after its second update and resumed, all of its events."""
    control, events = Control(), []
    for event in kit.train(plan, control, trackers=[name]):
        events.append(event)
        if isinstance(event, UpdateFinished) and event.update == 2:
            control.stop("lunch")
    assert isinstance(events[-1], RunStopped)
    events += kit.resume(plan.folder, trackers=[name])
    assert isinstance(events[-1], RunFinished)
    assert [one for one in events if isinstance(one, Warned)] == []
    return events


def told_stopped(kit, plan, name):
    """The same without training: what such a run says, read by the tracker as it does it."""
    when = iter(range(1, 99))

    def event(made, **about):
        return made(time=1e9 + next(when), **about)

    def update(number):
        figures = {"epoch": 1.0, "learning_rate": 1e-4, "grad_norm": 1.0, "seconds": 0.1, "memory": 5}
        return event(UpdateFinished, update=number, passes=number, loss=0.5 / number, **figures)

    def drawn(number):
        path = plan.folder / "samples" / f"{number:06d}-0.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16), (90 * number, 0, 0)).save(path)
        return event(PreviewDrawn, update=number, path=str(path), prompt=plan.settings.sampling.prompts[0])

    about = {"folder": str(plan.folder), "name": "run", "device": "cpu"}
    nothing = dict.fromkeys(VALIDATION)
    first = [
        event(RunStarted, **about),
        update(1),
        event(Alarm, kind="loss spike", update=1, message=f"hot {SECRET}"),
        update(2),
        drawn(2),
        event(RunStopped, update=2, reason="lunch", folder=str(plan.folder)),
    ]
    second = [
        event(RunStarted, **about, resumed_from=2),
        update(3),
        event(Validated, update=3, **{**nothing, "gap": 0.25}, **EMPTY),
        drawn(3),
        event(RunFinished, update=3, folder=str(plan.folder), lora="a.safetensors", proof="holds", seconds=1.0),
    ]
    part = kit.shelves.trackers[name]
    for events in (first, second):
        with (plan.folder / "events.jsonl").open("a") as journal:
            journal.writelines(f"{one.to_json()}\n" for one in events)
        assert list(trackers.tracked(iter(events), {name: lambda: part.resolve()(plan.folder, plan)})) == events
    return [*first, *second]


EMPTY = {
    "loss_error": None,
    "train_error": None,
    "levels": (),
    "loss_by_level": (),
    "train_by_level": (),
    "trigger_error": None,
    "largest_layer": "",
    "seconds": 0.1,
}


def losses(events):
    return [round(one.loss, 6) for one in events if isinstance(one, UpdateFinished)]


def holds_no_secret(folder: Path):
    assert [path for path in folder.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()] == []


@pytest.fixture(autouse=True)
def _secret(monkeypatch):
    monkeypatch.setenv("SOME_API_KEY", SECRET)


def test_tensorboard(kit, make_plan):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    plan = make_plan(**SHORT)
    events = train_stopped(kit, plan, "tensorboard")
    found = EventAccumulator(str(plan.folder / "tensorboard"))
    found.Reload()
    assert [round(one.value, 6) for one in found.Scalars("train/loss")] == losses(events)
    assert [one.step for one in found.Scalars("validation/gap")] == [0, 3]
    assert found.Tags()["images"] == ["preview/a ring (hidden)"]
    holds_no_secret(plan.folder / "tensorboard")


def records(data: bytes):
    """The records of a .wandb file: a LevelDB log after seven bytes, in which a record may span blocks of 32 KiB."""
    from wandb.proto.wandb_internal_pb2 import Record

    place, whole = 7, b""
    while place + 7 <= len(data):
        if (left := 32768 - place % 32768) < 7:
            place += left
            continue
        length, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
        whole += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # all of it, or its last part
            yield Record.FromString(whole)
            whole = b""


def test_weights_and_biases(kit, make_plan, monkeypatch, capfd):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_API_KEY", SECRET)
    monkeypatch.setattr("sys.argv", ["lorakit", "--token", SECRET])
    plan = make_plan(**SHORT)
    events = told_stopped(kit, plan, "wandb")
    told, ids, config = [], set(), {}
    for file in sorted((plan.folder / "wandb").glob("offline-run-*/*.wandb")):
        for record in records(file.read_bytes()):
            if record.WhichOneof("record_type") == "run":
                ids.add(record.run.run_id)
                config = config or {one.key: one.value_json for one in record.run.config.update}
            for one in record.history.item:
                if (one.key or ".".join(one.nested_key)) == "train/loss":
                    told.append(round(float(one.value_json), 6))
    assert told == losses(events)
    assert len(ids) == 1  # the resumed run is the same one of theirs
    assert config["trigger"] == '"sks"'
    assert config["lora.rank"] == "4"
    assert list((plan.folder / "wandb").rglob("*.png"))
    holds_no_secret(plan.folder / "wandb")
    assert capfd.readouterr() == ("", "")


def test_a_run_resumed_within_a_second_is_not_written_over(make_plan, monkeypatch):
    """Weights & Biases names its folder by the second, and would write a second part into the first's file."""
    from lorakit.trackers import wandb

    begun = datetime(2026, 1, 1, 12, 0, 0)
    clock = iter([begun, begun, begun + timedelta(seconds=1)])
    monkeypatch.setattr(wandb, "datetime", SimpleNamespace(now=lambda: next(clock)))
    plan = make_plan(**SHORT)
    (plan.folder / "wandb" / "offline-run-20260101_120000-abc").mkdir(parents=True)
    wandb.WeightsAndBiases(plan.folder, plan)._wait_for_a_name("abc")
    assert next(clock, None) is None


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of what MLflow stands on
def test_mlflow(kit, make_plan, monkeypatch, capfd):
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", SECRET)
    plan = make_plan(**SHORT)
    events = told_stopped(kit, plan, "mlflow")
    runs = plan.folder.parent
    with sqlite3.connect(runs / "mlflow.db") as database:
        metrics = database.execute("select value from metrics where key = 'train/loss' order by step").fetchall()
        params = dict(database.execute("select key, value from params").fetchall())
        (status,) = database.execute("select name, status from runs").fetchall()
    database.close()
    assert [round(value, 6) for (value,) in metrics] == losses(events)
    assert (params["trigger"], params["lora.rank"]) == ("sks", "4")
    assert params["sampling.prompts"] == "['a ring (hidden)']"
    assert status == ("run", "FINISHED")  # one run, stopped and resumed
    assert sorted(path.name for path in (runs / "mlflow").rglob("*.png")) == ["000002-0.png", "000003-0.png"]
    assert [path.read_text() for path in (runs / "mlflow").rglob("notes.txt")] == [
        "loss spike: hot (hidden)\nstopped: lunch"
    ]
    holds_no_secret(runs / "mlflow")
    assert SECRET.encode() not in (runs / "mlflow.db").read_bytes()
    assert capfd.readouterr() == ("", "")
    assert logging.getLogger().handlers == logging.root.handlers


# -- trackers that fail, are slow, or are of a plugin --------------------------------------------------------------


class Diary:
    """Of a plugin: keeps what it is told."""

    made: list = []  # noqa: RUF012

    def __init__(self, folder, plan) -> None:
        self.folder, self.events, self.closed = folder, [], 0
        self.made.append(self)

    def __call__(self, event) -> None:
        self.events.append(event)

    def close(self):
        self.closed += 1


class Careless(Diary):
    def __call__(self, event) -> None:
        super().__call__(event)
        if isinstance(event, UpdateFinished):
            raise SystemExit("no account")


class Brings:
    @hookimpl
    def register(self, registry):
        registry.tracker(Part(name="diary", summary="a test", load=f"{__name__}:Diary"))
        registry.tracker(Part(name="careless", summary="a test", load=f"{__name__}:Careless"))
        registry.tracker(Part(name="missing", summary="a test", load="no:where", requires=("no_such_thing",)))
        registry.tracker(Part(name="broken", summary="a test", load=f"{__name__}:nothing"))


@pytest.fixture
def own():
    Diary.made.clear()
    return Kit(plugins={"house": Brings()})


BARE = {"train": {"updates": 2}, "sampling": {"prompts": []}}


def test_a_plugin_brings_a_tracker_which_is_told_of_everything(own, make_plan):
    plan = make_plan(**BARE)
    events = list(own.train(plan, trackers=["diary", "diary"]))
    (diary,) = Diary.made
    assert diary.events == events
    assert (diary.folder, diary.closed) == (plan.folder, 1)


def test_a_tracker_that_fails_warns_and_stops_nothing(own, make_plan):
    events = list(own.train(make_plan(**BARE), trackers=["careless", "broken", "diary"]))
    assert isinstance(events[-1], RunFinished)
    told = sorted(one.message for one in events if isinstance(one, Warned))
    assert told[0].startswith("the tracker 'broken' failed and is told nothing more: PluginError: 'broken' cannot be")
    assert told[1] == "the tracker 'careless' failed and is told nothing more: SystemExit: no account"
    assert len(told) == 2
    careless, diary = sorted(Diary.made, key=lambda one: type(one).__name__)
    assert [type(one) for one in careless.events].count(UpdateFinished) == 1
    assert (careless.closed, diary.closed) == (1, 1)


def test_whoever_stops_reading_ends_the_trackers_too(own, make_plan):
    events = own.train(make_plan(**BARE), trackers=["diary"])
    assert isinstance(next(events), RunStarted)
    events.close()
    assert [one.closed for one in Diary.made] == [1]


def test_one_that_does_not_finish_is_not_waited_for(monkeypatch):
    import threading

    free = threading.Event()

    class Stuck(Diary):
        def __call__(self, event) -> None:
            free.wait()

    monkeypatch.setattr(trackers, "PATIENCE", 0.0)
    monkeypatch.setattr(trackers, "MOST", 2)
    ends = RunStopped(update=0, reason="", folder="")
    given = [Warned(message=str(number)) for number in range(9)]
    told = list(trackers.tracked(iter([*given, ends]), {"stuck": lambda: Stuck(Path(), None)}))
    free.set()
    assert told[-1] == ends
    assert [one for one in told if one in given] == given
    messages = [one.message for one in told if one not in [*given, ends]]
    assert messages == [
        "the tracker 'stuck' is too slow, and misses events",
        "the tracker 'stuck' did not finish within 0 seconds; what it has not shown is lost",
    ]


def test_what_is_not_there_is_refused_before_anything_begins(own, make_plan):
    plan = make_plan(**BARE)
    with pytest.raises(PluginError, match=r"'missing' needs no_such_thing\. Install it: pip install no_such_thing\."):
        own.train(plan, trackers=["missing"])
    with pytest.raises(ConfigError, match=r"no tracker 'wandbe'.*Did you mean 'wandb'"):
        own.train(plan, trackers=["wandbe"])
    assert not plan.folder.exists()


def test_without_an_account_weights_and_biases_is_a_warning(kit, make_plan, monkeypatch, tmp_path):
    import wandb

    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setattr(wandb, "login", lambda prompt: False)  # it looks into the home of whoever runs this
    events = list(kit.train(make_plan(**BARE), trackers=["wandb"]))
    assert isinstance(events[-1], RunFinished)
    (told,) = (one.message for one in events if isinstance(one, Warned))
    assert "there is no API key; run `wandb login`, or set WANDB_MODE=offline" in told


def test_the_command_line(capsys, pictures, tmp_path, monkeypatch):
    words = ["train", "--family", "qwen", "--preset", "toy", "--data", str(pictures), "--trigger", "sks"]
    words += ["--output", str(tmp_path / "runs")]
    assert command_line([*words, "--track", "wandbe"]) == 2
    assert "there is no tracker 'wandbe'" in capsys.readouterr().err
    asked = []
    monkeypatch.setattr(Kit, "train", lambda *_, trackers, **__: iter(asked.append(trackers) or ()))
    assert command_line([*words, "--track", "wandb", "--track", "mlflow"]) == 0
    assert command_line([*words, "--tensorboard"]) == 0
    assert asked == [("wandb", "mlflow"), ("tensorboard",)]
