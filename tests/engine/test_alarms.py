"""Each alarm is raised by what it warns of, put into a run that is otherwise sound, and by nothing else."""

from __future__ import annotations

import math
import random
from io import StringIO

import pytest
import torch
from PIL import Image
from rich.console import Console

from lorakit.alarms import Pass, Watch
from lorakit.cli.progress import Progress
from lorakit.engine import memory
from lorakit.engine.loop import Trainer
from lorakit.engine.preview import Painter
from lorakit.engine.run_folder import events_of
from lorakit.errors import TrainingError
from lorakit.events import Alarm, PreviewDrawn, RunFinished, UpdateFinished
from lorakit.shown import shows_nothing
from tests.pictures import scene

GIGABYTE = 10**9


class Story:
    """The figures of a run of 24 pictures whose loss depends on the noise level and a little on the picture."""

    def __init__(self, plan, seed=0) -> None:
        self.watch, self.chance, self.number = Watch(plan, lambda changes: None), random.Random(seed), 0

    def update(self, loss=1.0, norm=1.0, seconds=1.0, memory=GIGABYTE, reach=None, spilled=0, pictures=4):
        """One update, its usual figures times or replaced by those given."""
        self.number += 1
        passes = []
        for _ in range(pictures):
            sample, draw = self.chance.randrange(24), self.chance.random()
            usual = math.exp(2 * math.cos(math.pi * draw) + 0.02 * sample + self.chance.gauss(0, 0.15))
            passes.append(Pass(sample, draw, draw, usual * loss))
        done = UpdateFinished(
            update=self.number,
            passes=4 * self.number,
            epoch=0,
            loss=sum(one.loss for one in passes) / pictures,
            learning_rate=1e-4,
            grad_norm=norm * math.exp(self.chance.gauss(0, 0.3)) if norm else 0.0,
            seconds=seconds * self.chance.uniform(0.8, 1.2),
            memory=memory,
        )
        return list(self.watch.after(done, passes, reach, spilled))

    def kinds(self, count, **facts):
        return [alarm.kind for _ in range(count) for alarm in self.update(**facts)]


@pytest.fixture
def plan(make_plan):
    return make_plan()


@pytest.fixture
def story(plan):
    return Story(plan)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("shown", [1, 4])
def test_a_sound_run_raises_none(plan, seed, shown):
    """Though the losses of single passes differ by a factor of fifty."""
    assert Story(plan, seed).kinds(1000, pictures=shown) == []


def test_a_loss_spike_is_judged_against_its_noise_level(story):
    story.kinds(100)
    (alarm,) = story.update(loss=4)
    assert (alarm.kind, alarm.update, alarm.count) == ("loss spike", 101, 1)
    assert "times what is usual for its pictures and noise levels" in alarm.message
    assert alarm.advice[-1].startswith("the pictures and captions")
    assert story.kinds(50) == []  # the usual is not moved by it
    (again,) = story.update(loss=4)
    assert again.count == 2


def test_before_there_is_a_usual_nothing_is_a_spike(story):
    assert story.kinds(5) + story.kinds(1, loss=50) == []


def test_a_gradient_that_explodes(story):
    story.kinds(30)
    (alarm,) = story.update(norm=60)
    assert alarm.kind == "gradient explosion"
    assert "times as long as usual" in alarm.message


def test_a_slow_down_is_told_every_so_often(story):
    story.kinds(40)
    assert story.kinds(60, seconds=3) == ["slow-down"] * 3


def test_one_slow_update_is_no_slow_down(story):
    story.kinds(40)
    assert story.kinds(1, seconds=500) + story.kinds(40) == []


def test_memory_that_grows(story):
    kinds = [one.kind for step in range(400) for one in story.update(memory=GIGABYTE + step * 2**20)]
    assert kinds == ["memory growth"]


def test_memory_that_grows_once_is_none(story):
    assert story.kinds(300) + story.kinds(300, memory=2 * GIGABYTE) == []


def test_memory_that_spills(story):
    assert story.kinds(10, spilled=GIGABYTE) == ["memory spill"]


@pytest.mark.parametrize(("reach", "why"), [((0.0,), "all still 0"), ((2.0, 2.0, 2.0), "do not move")])
def test_a_dead_adapter_by_its_weights(story, reach, why):
    story.kinds(1)
    alarms = [alarm for one in reach for alarm in story.update(reach=one)]
    assert [alarm.kind for alarm in alarms] == ["dead adapter"]
    assert why in alarms[0].message


def test_an_adapter_that_moves_is_alive(story):
    assert [story.update(reach=0.1 * number) for number in range(1, 9)] == [[]] * 8


def test_a_dead_adapter_by_its_gradient(story):
    assert story.kinds(5, norm=0) == ["dead adapter"]


def test_pictures_that_show_nothing():
    noise = Image.effect_noise((64, 64), 60).convert("RGB")
    clipped = Image.new("RGB", (64, 64), (255, 0, 255))
    clipped.paste((0, 255, 0), (0, 0, 64, 20))
    white = Image.new("RGB", (64, 64), "white")
    white.paste((120, 80, 60), (16, 16, 48, 48))
    pictures = (Image.new("RGB", (64, 64), (1, 2, 1)), Image.new("RGB", (64, 64), (90, 91, 90)), clipped, noise, white)
    assert [shows_nothing(one) for one in pictures] == ["black", "flat", "saturated", "", ""]


@pytest.mark.parametrize(("taught", "raised"), [("scene", 1), ("drawing", 0), ("nothing that can be read", 0)])
def test_a_preview_that_holds_far_less_than_earlier_ones(make_plan, tmp_path, taught, raised):
    """A nearly empty picture is a collapse, unless it is what the training pictures look like."""
    drawing = Image.new("RGB", (64, 64), "white")
    drawing.paste((120, 80, 60), (16, 16, 48, 48))
    drawing.save(tmp_path / "drawing.png")
    for seed in (1, 2, 3):
        scene(seed, (64, 64)).save(tmp_path / f"{seed}.png")
    watch = Watch(make_plan(), lambda changes: None)
    watch.taught = lambda: [tmp_path / {"scene": "1.png", "drawing": "drawing.png"}.get(taught, "gone.png")]
    names = ("1.png", "2.png", "drawing.png", "3.png")
    drawn = [PreviewDrawn(update=place, path=str(tmp_path / name), prompt="a") for place, name in enumerate(names)]
    alarms = [alarm for one in drawn for alarm in watch.picture(one)]
    assert [alarm.update for alarm in alarms] == [2] * raised
    assert all("nearly empty" in alarm.message for alarm in alarms)


# -- in a run ----------------------------------------------------------------------------------------------------


def test_a_spike_in_a_run_names_the_picture_is_printed_once_and_recorded(kit, make_plan, of_kind, monkeypatch):
    plan = make_plan(train={"updates": 75}, sampling={"prompts": []})
    inner = Trainer.score

    def score(self, shown):
        return inner(self, shown) * (30 if self.updates in (60, 70) else 1)

    monkeypatch.setattr(Trainer, "score", score)
    said, events = StringIO(), []
    progress = Progress(Console(file=said, width=200))
    for event in kit.train(plan):
        progress(event)
        events.append(event)
    spikes = [one for one in of_kind(events, Alarm) if one.kind == "loss spike"]
    assert [one.update for one in spikes] == [61, 71]
    assert str(plan.settings.data[0].folder) in spikes[0].message
    assert [one for one in events_of(plan.folder) if isinstance(one, Alarm)] == of_kind(events, Alarm)
    printed = said.getvalue()
    assert printed.count("alarm        the loss of update") == 1
    assert "loss spike 2 times" in printed


def test_an_optimizer_that_does_nothing(kit, make_plan, of_kind, monkeypatch):
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self, closure=None: None)
    events = list(kit.train(make_plan(train={"updates": 3}, sampling={"prompts": []}, lora={"targets": ["attn.to_q"]})))
    assert {one.kind for one in of_kind(events, Alarm)} == {"dead adapter"}
    assert "B halves are all still 0" in of_kind(events, Alarm)[0].message


def test_black_previews(kit, make_plan, of_kind, monkeypatch):
    monkeypatch.setattr(Painter, "draw", lambda *given: Image.new("RGB", (32, 32)))
    plan = make_plan(train={"updates": 2}, sampling={"prompts": ["a moon"], "every": 1})
    alarms = of_kind(kit.train(plan), Alarm)
    assert [(one.kind, one.update, one.count) for one in alarms] == [("empty preview", 1, 1), ("empty preview", 2, 2)]
    assert "000001-0.png is black: 'a moon'" in alarms[0].message


def test_a_loss_that_is_no_number_names_the_picture_and_the_level_of_it_alone(kit, make_plan, monkeypatch):
    plan = make_plan(train={"updates": 3, "accumulation": 4}, sampling={"prompts": []})
    inner = Trainer.loss

    def loss(self, turn, samples):
        bad = self.updates == 1 and self.describe(turn.samples[0]).endswith("2.png")
        return inner(self, turn, samples) * (float("nan") if bad else 1)

    monkeypatch.setattr(Trainer, "loss", loss)
    seen = []
    with pytest.raises(TrainingError, match=r"computed on \S*/2\.png at noise level 0\.\d+\. In a new run"):
        seen.extend(kit.train(plan))
    last = list(events_of(plan.folder))[-1]
    assert (last.kind, last.update) == ("not finite", 2)
    assert "2.png at noise level" in last.message


def test_memory_that_runs_out_is_recorded_with_the_ladder(kit, make_plan, monkeypatch):
    plan = make_plan(train={"updates": 3}, sampling={"prompts": []})
    inner = Trainer.start

    def update(self, *given):
        if self.updates == 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return inner(self, *given)

    monkeypatch.setattr(Trainer, "start", update)
    with pytest.raises(TrainingError, match="does not suffice"):
        list(kit.train(plan))
    last = list(events_of(plan.folder))[-1]
    assert (last.kind, last.update) == ("out of memory", 2)
    assert last.advice[-1].endswith("train.accumulation does not help")
    assert any("saves about" in line for line in last.advice)


def test_what_the_process_has_on_the_disk_is_known():
    assert memory.spilled(torch.device("cpu")) >= 0


def test_a_device_that_lends_more_than_it_has(monkeypatch):
    class Properties:
        total_memory = 8 * GIGABYTE

    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 9 * GIGABYTE)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: Properties)
    assert memory.spilled(torch.device("cuda")) == GIGABYTE


def test_a_sound_run_of_the_toy_raises_none(kit, make_plan, of_kind):
    events = list(kit.train(make_plan(train={"updates": 80}, sampling={"prompts": ["a red circle"], "every": 80})))
    assert isinstance(events[-1], RunFinished)
    assert [one for one in of_kind(events, Alarm) if one.kind != "slow-down"] == []
