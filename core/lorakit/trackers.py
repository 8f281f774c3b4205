"""Trackers: readers of the event stream, a few lines each over their own library."""

from __future__ import annotations

from pathlib import Path

from lorakit.errors import PluginError
from lorakit.events import Alarm, Event, PreviewDrawn, RunStopped, UpdateFinished, Validated, Warned


class TensorBoard:
    """Writes losses, rates, norms and previews to `folder`, for `tensorboard --logdir`."""

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise PluginError(
                "TensorBoard is not installed", where="--tensorboard", fix="pip install 'lorakit[tensorboard]'."
            ) from error
        self._writer = SummaryWriter(str(folder))

    def __call__(self, event: Event) -> None:
        """Write one event, if it is one that is drawn."""
        if isinstance(event, UpdateFinished):
            for name in ("loss", "learning_rate", "grad_norm", "seconds", "memory"):
                self._writer.add_scalar(f"train/{name}", getattr(event, name), event.update, event.time)
        elif isinstance(event, Validated):
            for name in ("loss", "train_loss", "gap", "trigger", "drift", "norm", "largest_norm"):
                value = getattr(event, name)
                if value is not None:
                    self._writer.add_scalar(f"validation/{name}", value, event.update, event.time)
        elif isinstance(event, PreviewDrawn):
            self._picture(event)
        elif isinstance(event, (Alarm, Warned, RunStopped)):
            text = event.message if not isinstance(event, RunStopped) else f"stopped: {event.reason}"
            self._writer.add_text("notes", text, walltime=event.time)

    def close(self) -> None:
        """Finish writing."""
        self._writer.close()

    def _picture(self, event: PreviewDrawn) -> None:
        import numpy as np
        from PIL import Image

        with Image.open(event.path) as picture:
            pixels = np.asarray(picture.convert("RGB"))
        tag = f"preview/{event.prompt[:60]}"
        self._writer.add_image(tag, pixels, event.update, event.time, dataformats="HWC")
