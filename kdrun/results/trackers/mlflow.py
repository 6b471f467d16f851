"""MLflow: on a server, or in a file of SQLite, which needs none."""

import csv
import io
import logging
import os
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic import Field

from kdrun.config.nodes import dump
from kdrun.config.parts import TrackerConfig
from kdrun.config.values import leaves
from kdrun.core.later import later
from kdrun.core.registry import register
from kdrun.results.trackers.pictures import pictures
from kdrun.training.tracking import Outcome, Tracker

if TYPE_CHECKING:
    from mlflow import entities
    from mlflow.tracking import MlflowClient
else:
    entities = later("mlflow.entities")
    MlflowClient = later("mlflow.tracking", "MlflowClient")

KEY, STEP = "kdrun.key", "kdrun.step"
"""Tags: the run key, and the last step that was sent, which goes with its values."""
PATIENCE = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "10", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1"}
"""For a server that is gone, where nobody says more: its own is minutes, and training would stand still."""
LONGEST = 500  # characters of a parameter


@register("tracker", "mlflow")
class Mlflow(Tracker):
    """A run that goes on is found by its tag, and told what comes after the last step that it has."""

    class Config(TrackerConfig):
        name: str = "mlflow"
        uri: str | None = Field(None, min_length=1)
        """Of a server or a database; null: MLFLOW_TRACKING_URI, else <outputs>/mlflow.db."""
        experiment: str = Field("kdrun", min_length=1)

    modules = ("mlflow", "sqlalchemy", "alembic")
    install = "kdrun[mlflow]"

    def start(self) -> None:
        for name, value in {**PATIENCE, "MLFLOW_DISABLE_TELEMETRY": "true"}.items():
            os.environ.setdefault(name, value)
        outputs, kept = self.run.job.outputs.absolute(), None
        uri = self.config.uri or os.environ.get("MLFLOW_TRACKING_URI")
        if uri is None:
            outputs.mkdir(parents=True, exist_ok=True)
            uri, kept = f"sqlite:///{outputs}/mlflow.db", (outputs / "mlartifacts").as_uri()
        logging.getLogger("mlflow").setLevel(logging.WARNING)
        logging.getLogger("alembic").setLevel(logging.WARNING)
        self._client = MlflowClient(tracking_uri=uri)
        experiment = self._experiment(kept)
        self._final: set[str] = set()
        found = self._client.search_runs([experiment], f"tags.`{KEY}` = '{self.run.key}'", max_results=1)
        if found:
            self._id = found[0].info.run_id
            self.first = int(found[0].data.tags.get(STEP, -1)) + 1
            self._final = set(found[0].data.metrics)
            self._client.update_run(self._id, status="RUNNING")
            return
        tags = {KEY: self.run.key, "kdrun.group": self.run.group, "kdrun.role": self.run.role}
        self._id = self._client.create_run(experiment, run_name=self.run.name, tags=tags).info.run_id
        given = {key: str(value)[:LONGEST] for key, value in leaves(dump(self.run.config)) if value not in (None, "")}
        parameters = [entities.Param(key, value) for key, value in given.items()]
        for k in range(0, len(parameters), 100):  # as many as one call takes
            self._client.log_batch(self._id, params=parameters[k : k + 100])

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        self._client.log_batch(self._id, metrics=_of(values, step), tags=[entities.RunTag(STEP, str(step))])

    def finish(self, outcome: Outcome) -> None:
        known = self._final.union(outcome.told)
        more = {name: value for name, value in outcome.metrics.items() if name not in known}
        self._client.log_batch(self._id, metrics=_of(more, outcome.step))
        columns, rows = outcome.table
        if rows:
            text = io.StringIO()
            csv.writer(text, lineterminator="\n").writerows([columns, *rows])
            self._client.log_text(self._id, text.getvalue(), "results.csv")
        for name, image in pictures(outcome).items():
            self._client.log_image(self._id, image, artifact_file=f"{name}.png")
        self._client.set_terminated(self._id, "FAILED" if outcome.failed else "FINISHED")

    def _experiment(self, kept: str | None) -> str:
        name = self.config.experiment
        found = self._client.get_experiment_by_name(name)
        if found is None:
            try:
                return str(self._client.create_experiment(name, artifact_location=kept))
            except Exception:  # another run has made it meanwhile
                found = self._client.get_experiment_by_name(name)
                if found is None:
                    raise
        return str(found.experiment_id)


def _of(values: Mapping[str, Any], step: int) -> "list[entities.Metric]":
    now = time.time_ns() // 1_000_000
    return [entities.Metric(name, value, now, step) for name, value in values.items() if value is not None]
