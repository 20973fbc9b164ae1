"""Tuning through the unmodified `openai` client: upload, create the job, follow its events."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from openai import OpenAI
from openai.types.fine_tuning import FineTuningJob, FineTuningJobEvent, SupervisedHyperparametersParam

POLL_S = 0.5
Report = Callable[[str], None]
BATCH_SIZE = 16
ENDED = ("succeeded", "failed", "cancelled")


class JobFailed(RuntimeError):
    """A job that did not succeed; the message says why."""


@dataclass(frozen=True)
class Tuned:
    """`model` is the version's reference (`dates@1`); `seconds` from the upload to a version that answers."""

    model: str
    seconds: float
    trained_tokens: int


@dataclass
class Follower:
    """Reports each event of a job once, and of the metrics about every tenth part of the way."""

    client: OpenAI
    job: FineTuningJob
    report: Report
    share: float = 0.0
    _seen: set[str] = field(default_factory=set)
    _next_share: float = 0.0

    @property
    def ended(self) -> bool:
        return self.job.status in ENDED

    def refresh(self) -> None:
        """Reads the job and its new events."""
        self.job = self.client.fine_tuning.jobs.retrieve(self.job.id)
        for event in self._fresh_events():
            if event.type != "metrics" or self._is_due(event):
                self.report(event.message)

    def wait(self, share: float = 1.1) -> None:
        """Returns when `share` of the steps are done, or the job has ended."""
        while not self.ended and self.share < share:
            time.sleep(POLL_S)
            self.refresh()

    def result(self) -> str:
        """The reference of the version that came out. Raises JobFailed."""
        job = self.job
        if job.status != "succeeded" or job.fine_tuned_model is None:
            raise JobFailed(f"{job.id} {job.status}: {job.error.message if job.error else 'no reason given'}")
        return job.fine_tuned_model

    def _fresh_events(self) -> list[FineTuningJobEvent]:
        """Oldest first."""
        fresh: list[FineTuningJobEvent] = []
        for event in self.client.fine_tuning.jobs.list_events(self.job.id, limit=50):
            if event.id in self._seen:
                break
            self._seen.add(event.id)
            fresh.append(event)
        return fresh[::-1]

    def _is_due(self, event: FineTuningJobEvent) -> bool:
        data = event.data if isinstance(event.data, dict) else {}
        self.share = data.get("step", 0) / max(1, data.get("total_steps") or 1)
        if self.share < self._next_share:
            return False
        self._next_share = self.share + 0.1
        return True


def start_job(
    client: OpenAI, base: str, data: Path, adapter: str, n_epochs: int, report: Report, batch_size: int = BATCH_SIZE
) -> Follower:
    """Uploads `data` and creates the job that trains `adapter` on it. Raises JobFailed when the file is refused."""
    with data.open("rb") as stream:
        file = client.files.create(file=stream, purpose="fine-tune")
    file = client.files.wait_for_processing(file.id, poll_interval=POLL_S)
    if file.status != "processed":
        raise JobFailed(f"{data.name} was refused: {file.status_details}")
    # The learning rate is the one that "auto" chooses for a model of this size.
    numbers: SupervisedHyperparametersParam = {"n_epochs": n_epochs, "batch_size": batch_size}
    job = client.fine_tuning.jobs.create(
        model=base,
        training_file=file.id,
        suffix=adapter,
        seed=7,
        method={"type": "supervised", "supervised": {"hyperparameters": numbers}},
    )
    return Follower(client, job, report)


def tune(
    client: OpenAI, base: str, data: Path, adapter: str, n_epochs: int, report: Report, batch_size: int = BATCH_SIZE
) -> Tuned:
    """Trains `adapter` on `data` and waits for the version. Raises JobFailed."""
    started = time.monotonic()
    follower = start_job(client, base, data, adapter, n_epochs, report, batch_size)
    follower.wait()
    return Tuned(follower.result(), time.monotonic() - started, follower.job.trained_tokens or 0)
