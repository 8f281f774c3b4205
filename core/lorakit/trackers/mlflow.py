"""MLflow: to the server or database of MLFLOW_TRACKING_URI, or to `mlflow.db` beside the run's folder."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from mlflow.entities import Metric, Param
from mlflow.tracking import MlflowClient

from lorakit.events import Event, PreviewDrawn, RunFinished, RunStarted, RunStopped, SheetDrawn
from lorakit.plan import Plan
from lorakit.trackers import figures, identity, note, settings

TAG = "lorakit.run"
LONGEST = 500
"""Characters of a parameter, which every server takes."""

AT_ONCE = 100
"""Parameters that a server takes in one request."""


class MLflow:
    """Shows a run as one of an experiment; a run that is resumed goes on in it.

    It goes through a client of its own: MLflow's active run, which a process has one of, is left alone.
    """

    def __init__(self, folder: Path, plan: Plan) -> None:
        self._folder, self._plan = folder, plan
        logging.getLogger("mlflow").setLevel(logging.WARNING)  # it greets every new database
        self._uri = os.environ.get("MLFLOW_TRACKING_URI", "")
        self._client = MlflowClient(self._uri or f"sqlite:///{folder.absolute().parent / 'mlflow.db'}")
        self._run, self._status = "", "FAILED"
        self._notes: list[str] = []

    def __call__(self, event: Event) -> None:
        """Log one event, if it is one that is shown."""
        if isinstance(event, RunStarted):
            self._begin(event)
        update, found = figures(event)
        if found:
            at = round(event.time * 1000)
            self._client.log_batch(self._run, [Metric(name, value, at, update) for name, value in found.items()])
        if isinstance(event, (PreviewDrawn, SheetDrawn)):
            self._client.log_artifact(self._run, event.path, "samples")
        if note(event):
            self._notes.append(note(event))
            self._client.log_text(self._run, "\n".join(self._notes), "notes.txt")
        if isinstance(event, (RunFinished, RunStopped)):
            self._status = "FINISHED" if isinstance(event, RunFinished) else "KILLED"

    def _begin(self, event: RunStarted) -> None:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "lorakit")
        place = None if self._uri else (self._folder.absolute().parent / "mlflow").as_uri()
        known = self._client.get_experiment_by_name(name)
        experiment = known.experiment_id if known else self._client.create_experiment(name, place)
        mark = identity(self._folder, event)
        same = self._client.search_runs([experiment], f"tags.`{TAG}` = '{mark}'", max_results=1)
        if same:
            self._run = same[0].info.run_id
            self._client.update_run(self._run, "RUNNING")
            return
        self._run = self._client.create_run(experiment, tags={TAG: mark}, run_name=self._plan.settings.name).info.run_id
        told = [Param(key, str(value)[:LONGEST]) for key, value in settings(self._plan).items()]
        for start in range(0, len(told), AT_ONCE):
            self._client.log_batch(self._run, params=told[start : start + AT_ONCE])

    def close(self) -> None:
        """Say how it ended."""
        if self._run:
            self._client.set_terminated(self._run, self._status)
