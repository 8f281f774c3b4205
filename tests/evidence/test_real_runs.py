"""Real trainings of the toy whose right answer is known: too short, and far too long on few pictures.

One that is long enough is the demo, in `tests/test_demo.py`.
"""

from pathlib import Path

import pytest

from lorakit import Kit, evidence, history
from lorakit.cli import run
from lorakit.evidence import recommend

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"


@pytest.fixture
def recommended(tmp_path):
    """Train the toy, and what is recommended of it with the words for it."""

    def train(name, folders, updates, every, rate, **more):
        wanted = {
            "family": "qwen",
            "preset": "toy",
            "trigger": "sks",
            "name": name,
            "output": str(tmp_path / "runs"),
            "data": [{"folder": str(EXAMPLES / folder), "trigger": trigger} for folder, trigger in folders.items()],
            "train": {"updates": updates, "batch_size": more.get("batch_size", 4)},
            "optimizer": {"learning_rate": rate},
            "validation": {"every": every, "pictures": more.get("pictures", "auto")},
            "sampling": {"every": 0, "strengths": []},
            "save": {"every": every, "keep": 100},
        }
        kit = Kit()
        events = list(kit.train(kit.plan(wanted)))
        folder = Path(events[-1].folder)
        found = history.read(folder)
        return folder, recommend(evidence.candidates(found, evidence.judged(found)))

    return train


@pytest.mark.slow
def test_overfit_an_earlier_checkpoint_is_recommended(recommended, capsys):
    """Four pictures, shown 120 times each at three times the usual rate; the other eight are held out."""
    folder, found = recommended("overfit", {"pictures": "sks"}, 240, 60, 3e-3, pictures=8, batch_size=2)
    assert found.rise is not None
    assert found.rise.sure
    assert found.lasting
    assert found.first.candidate.update <= 120
    losses = [one.train_loss for one in history.read(folder).validations]
    assert losses[-1] < losses[2]  # by the training pictures, the last ones look the better
    capsys.readouterr()
    assert run(["pick", str(folder)]) == 0
    said = capsys.readouterr().out
    assert f"recommended  update {found.first.candidate.update} " in said
    assert "Overfitting: the held-out loss rises" in said
    assert "An earlier checkpoint is recommended." in said


@pytest.mark.thorough
def test_underfit_the_last_checkpoint_is_recommended_and_going_on_is_advised(recommended, capsys):
    folder, found = recommended("underfit", {"pictures": "sks"}, 12, 4, 2e-4, pictures=4)
    assert found.first.candidate.update == 12
    assert found.fall is not None
    assert found.rise is None
    assert run(["pick", str(folder)]) == 0
    assert "Still learning: the held-out loss fell" in capsys.readouterr().out
