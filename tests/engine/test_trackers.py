"""TensorBoard as a reader of events."""

import pytest
from PIL import Image

from lorakit.events import PreviewDrawn, RunStopped, UpdateFinished, Warned
from lorakit.trackers import TensorBoard

pytest.importorskip("tensorboard")


def test_losses_and_pictures_are_written(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    picture = tmp_path / "p.png"
    Image.new("RGB", (16, 16), (255, 0, 0)).save(picture)
    reader = TensorBoard(tmp_path / "logs")
    for update, loss in enumerate((0.5, 0.25), 1):
        reader(
            UpdateFinished(
                update=update, passes=update, epoch=1, loss=loss, learning_rate=1e-4, grad_norm=1, seconds=0.1
            )
        )
    reader(PreviewDrawn(update=2, path=str(picture), prompt="a ring"))
    reader(Warned(message="odd"))
    reader(RunStopped(update=2, reason="SIGINT", folder=str(tmp_path)))
    reader.close()
    found = EventAccumulator(str(tmp_path / "logs"))
    found.Reload()
    assert [round(one.value, 3) for one in found.Scalars("train/loss")] == [0.5, 0.25]
    assert found.Tags()["images"] == ["preview/a ring"]
