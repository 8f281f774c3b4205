"""TensorBoard: figures, previews and notes in the run's folder, for `tensorboard --logdir`."""

from __future__ import annotations

from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from lorakit.events import Event, PreviewDrawn
from lorakit.plan import Plan
from lorakit.secret import redacted
from lorakit.trackers import figures, note


class TensorBoard:
    """Writes to `tensorboard` in the run's folder."""

    def __init__(self, folder: Path, plan: Plan) -> None:
        self._writer = SummaryWriter(str(folder / "tensorboard"))

    def __call__(self, event: Event) -> None:
        """Write one event, if it is one that is drawn."""
        update, found = figures(event)
        for name, value in found.items():
            self._writer.add_scalar(name, value, update, event.time)
        if isinstance(event, PreviewDrawn):
            self._picture(event)
        if note(event):
            self._writer.add_text("notes", note(event), walltime=event.time)

    def close(self) -> None:
        """Finish writing."""
        self._writer.close()

    def _picture(self, event: PreviewDrawn) -> None:
        import numpy as np
        from PIL import Image

        with Image.open(event.path) as picture:
            pixels = np.asarray(picture.convert("RGB"))
        tag = redacted(f"preview/{event.prompt[:60]}")
        self._writer.add_image(tag, pixels, event.update, event.time, dataformats="HWC")
