"""The model libraries are hushed before they are first used, whatever a run begins with."""

import pytest

from lorakit.cli import progress, runs
from lorakit.events import PhaseStarted


@pytest.mark.parametrize("phase", ["cache text", "cache images", "load"])
@pytest.mark.parametrize(("module", "reader"), [(progress, progress.Progress), (runs, runs._JsonLines)])
def test_they_are_hushed_in_every_phase_that_uses_them(monkeypatch, module, reader, phase):
    hushed, read = [], reader()
    monkeypatch.setattr(module, "hush", lambda: hushed.append(True))
    read(PhaseStarted(phase="index"))
    assert not hushed  # the first answer does not wait for imports
    read(PhaseStarted(phase=phase, total=1))
    assert hushed
