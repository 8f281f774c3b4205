"""A machine measured, and the first updates of a run held against the estimate."""

import pytest
import torch

from lorakit import Kit
from lorakit.engine import checking, measuring
from lorakit.errors import LorakitError
from lorakit.estimate import rates
from lorakit.estimate.words import compared
from lorakit.events import EstimateChecked, Event, UpdateFinished


@pytest.fixture(autouse=True)
def _quick(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(measuring, "WIDTHS", (16, 64))
    monkeypatch.setattr(measuring, "BUDGET", 0)


def test_what_is_measured_is_kept_and_found():
    found = Kit().calibrate("cpu")
    name = measuring.device_name(torch.device("cpu"))
    assert found.name == name
    assert rates.of_device(name) == rates.here() == found
    assert min(found.kernel) >= 0
    assert min(found.bandwidth, found.context, *found.ceiling.values()) > 0


def test_a_folder_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(LorakitError, match="cannot be written"):
        measuring.calibrate("cpu")


def updates(count, seconds=0.5):
    facts = {"passes": 1, "epoch": 1.0, "loss": 1.0, "learning_rate": 1.0, "grad_norm": 1.0, "memory": 5_000_000}
    return [UpdateFinished(update=one, seconds=seconds, **facts) for one in range(1, count + 1)]


@pytest.mark.parametrize("calibrated", [True, False])
def test_twenty_updates_are_compared_once(make_plan, kit, family, calibrated):
    plan, cpu = make_plan(), torch.device("cpu")
    if calibrated:
        measuring.calibrate("cpu")
    checks = checking.Checking(plan, family, kit.shelves, cpu)
    told = [one for update in updates(30) for one in checks.after(update)]
    assert len(told) == 1
    assert isinstance(told[0], EstimateChecked)
    assert (told[0].update, told[0].seconds) == (20, 0.5)
    assert (told[0].expected_seconds is not None) == calibrated
    assert "lorakit calibrate" in " ".join(compared(told[0]))
    assert Event.from_json(told[0].to_json()) == told[0]
