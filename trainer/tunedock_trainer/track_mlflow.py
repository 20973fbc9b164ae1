"""MLflow: the job names the experiment, the trainer's environment (`MLFLOW_TRACKING_URI` and its credentials) the server."""

from __future__ import annotations

import logging
import os
import time
from types import TracebackType
from typing import Any

from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from tunedock_api.errors import BadInput
from tunedock_registry.data.knobs import KNOBS_KEY, MlflowKnobs

from .history import Row, scalars
from .job import Job
from .reporter import Reporter, Stopped

log = logging.getLogger(__name__)

_RUN_TAG = "tunedock.run"
_MAX_PARAM_CHARS = 500


class MlflowTracker:
    """Numbers are sent by a thread of MLflow's, so that no step waits for the server. What it refuses later is told as a
    warning and costs no job its end."""

    def __init__(self, job: Job, asked: MlflowKnobs, reporter: Reporter) -> None:
        self._job, self._asked, self._reporter = job, asked, reporter
        self._name = job.record.id if job.num_runs == 1 else f"{job.record.id}-{job.number}"
        self._sent: list[Any] = []

    def add(self, row: Row) -> None:
        now = int(time.time() * 1000)
        metrics = [Metric(tag, value, now, row.step) for tag, value in scalars(row).items()]
        self._sent.append(self._client.log_batch(self._run_id, metrics=metrics, synchronous=False))

    def __enter__(self) -> MlflowTracker:
        address = os.environ.get("MLFLOW_TRACKING_URI")
        if not address:
            raise BadInput(
                "The trainer knows no MLflow server: set MLFLOW_TRACKING_URI where it runs.",
                param=f"{KNOBS_KEY}.mlflow",
            )
        try:
            self._client = MlflowClient(address)
            self._run_id = self._begin()
        except MlflowException as error:
            raise BadInput(f"MLflow does not take the run: {error}.", param=f"{KNOBS_KEY}.mlflow") from error
        return self

    def _begin(self) -> str:
        """The run of an earlier try of this job, or a new one."""
        found = self._client.get_experiment_by_name(self._asked.experiment)
        experiment = found.experiment_id if found else self._client.create_experiment(self._asked.experiment)
        earlier = self._client.search_runs([experiment], f"tags.`{_RUN_TAG}` = '{self._name}'", max_results=1)
        if earlier:
            run_id = str(earlier[0].info.run_id)
            self._client.update_run(run_id, status="RUNNING")
            return run_id
        name = self._asked.run_name or self._name
        run = self._client.create_run(experiment, tags={**self._asked.tags, _RUN_TAG: self._name}, run_name=name)
        params = [
            Param(key, str(value)[:_MAX_PARAM_CHARS]) for key, value in _flat(self._job.config.model_dump()).items()
        ]
        tags = [RunTag("tunedock.adapter", self._job.record.adapter), RunTag("tunedock.model", self._job.record.model)]
        self._client.log_batch(run.info.run_id, params=params, tags=tags)
        return str(run.info.run_id)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            for sent in self._sent:
                sent.wait()
            self._client.set_terminated(self._run_id, _status(error))
        except MlflowException as refused:
            log.warning("job %s: MLflow did not take all numbers: %s", self._job.record.id, refused)
            self._reporter.event(f"MLflow did not take all numbers: {str(refused)[:200]}", level="warn")


def _status(error: BaseException | None) -> str:
    if error is None:
        return "FINISHED"
    return "KILLED" if isinstance(error, Stopped) else "FAILED"


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested keys joined by dots."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found
