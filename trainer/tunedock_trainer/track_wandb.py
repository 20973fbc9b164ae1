"""Weights & Biases: the integration of OpenAI's API. The key, the server and the mode (`offline`) come from the environment
of the trainer (`WANDB_API_KEY`, `WANDB_BASE_URL`, `WANDB_MODE`), never from a job."""

from __future__ import annotations

from types import TracebackType
from typing import Any

import wandb
from tunedock_api.errors import BadInput

from .history import Row, scalars
from .job import Job
from .reporter import Reporter

_FINISH_S = 60.0
"""How long the end of a job waits for a slow server; what is not sent by then stays in the run folder."""


class WandbTracker:
    """A run named after the job, unless the job names it. What is sent goes through a process of wandb's own: a slow or
    absent server holds no step up."""

    def __init__(self, job: Job, asked: dict[str, Any], run_id: str) -> None:
        self._job, self._asked, self._run_id = job, asked, run_id
        self._run: Any = None

    def add(self, row: Row) -> None:
        self._run.log(scalars(row), step=row.step)

    def __enter__(self) -> WandbTracker:
        record = self._job.record
        ours = ("tunedock", f"tunedock/{record.model}"[:64], f"tunedock/{record.id}")
        try:
            # Several jobs may train in this process, each with a run of its own.
            self._run = wandb.init(
                project=self._asked["project"],
                entity=self._asked.get("entity"),
                name=self._asked.get("name") or self._run_id,
                tags=[*(self._asked.get("tags") or ()), *ours],
                id=self._run_id,
                resume="allow",
                reinit="create_new",
                dir=self._job.folder,
                config=self._job.config.model_dump(mode="json"),
                settings=wandb.Settings(silent=True, console="off", finish_timeout=_FINISH_S),
            )
        except wandb.Error as error:
            raise BadInput(
                f"Weights & Biases does not take the run: {error}. Its key and address are set where the trainer runs "
                "(WANDB_API_KEY, WANDB_BASE_URL).",
                param="integrations",
            ) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._run.finish(exit_code=0 if error is None else 1)


def wandb_trackers(job: Job, reporter: Reporter) -> list[WandbTracker]:
    """One for each integration of the job, whose `run_id` is told."""
    runs, told = [], []
    for number, integration in enumerate(job.record.integrations or ()):
        run_id = "-".join(
            [job.record.id, *([str(job.number)] if job.num_runs > 1 else []), *([str(number)] if number else [])]
        )
        runs.append(WandbTracker(job, integration["wandb"], run_id))
        told.append({**integration, "wandb": {**integration["wandb"], "run_id": run_id}})
    reporter.progress(integrations=told)
    return runs
