"""Weights & Biases: where to and as whom is said by its own variables (WANDB_PROJECT, WANDB_MODE, WANDB_API_KEY)."""

from __future__ import annotations

import os
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import wandb

from lorakit.events import Alarm, Event, PreviewDrawn, RunFinished, RunStarted, SheetDrawn
from lorakit.plan import Plan
from lorakit.secret import redacted
from lorakit.trackers import figures, identity, note, settings


class WeightsAndBiases:
    """Shows a run as one of theirs; a run that is resumed goes on in it.

    Nothing of the machine, its command lines, its terminal or its code is recorded.
    """

    def __init__(self, folder: Path, plan: Plan) -> None:
        self._folder, self._plan = folder, plan
        self._run: Any = None
        self._code = 1

    def __call__(self, event: Event) -> None:
        """Log one event, if it is one that is shown."""
        if isinstance(event, RunStarted):
            self._begin(event)
        update, found = figures(event)
        if found:
            self._run.log({"update": update, **found})
        if isinstance(event, PreviewDrawn):
            picture = wandb.Image(event.path, caption=redacted(event.prompt))
            self._run.log({"update": event.update, f"preview/{Path(event.path).stem.rpartition('-')[2]}": picture})
        elif isinstance(event, SheetDrawn):
            self._run.log({"strengths": wandb.Image(event.path)})
        elif isinstance(event, Alarm):
            self._run.alert(title=event.kind, text=note(event), level="WARN")
        elif isinstance(event, RunFinished):
            self._run.summary.update({"lora": event.lora, "proof": event.proof})
            self._code = 0

    def _begin(self, event: RunStarted) -> None:
        quiet = wandb.Settings(
            silent=True,
            console="off",
            x_disable_meta=True,
            x_disable_stats=True,
            x_disable_machine_info=True,
            disable_git=True,
            disable_job_creation=True,
            save_code=False,
        )
        if os.environ.get("WANDB_MODE", "online") == "online" and not wandb.login(prompt=False):
            raise RuntimeError("there is no API key; run `wandb login`, or set WANDB_MODE=offline")
        known = identity(self._folder, event)
        self._wait_for_a_name(known)
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "lorakit"),
            name=self._plan.settings.name,
            id=known,
            resume="allow",
            reinit="create_new",
            dir=self._folder,
            config=settings(self._plan),
            settings=quiet,
        )
        self._run.define_metric("*", step_metric="update")

    def _wait_for_a_name(self, known: str) -> None:
        """Their folder is named by the second: a run that is resumed within one would write over what it was before."""
        while any((self._folder / "wandb").glob(f"*run-{datetime.now():%Y%m%d_%H%M%S}-{known}")):
            time.sleep(0.05)

    def close(self) -> None:
        """Finish; a run that did not come to its end is marked as failed."""
        if self._run is not None:
            self._run.finish(exit_code=self._code)
