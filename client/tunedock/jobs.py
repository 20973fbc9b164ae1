"""`client.jobs` and the handle of one fine-tuning job."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from tunedock_api.errors import Conflict, DeadlineExceeded, TuneDockError

from . import operations as op
from .pages import collect, walk
from .progress import Progress, ProgressOption, reporter
from .types import Checkpoint, JobEvent, JobInfo, Metric
from .wire_errors import from_code

POLL_S = 1.0


class AsyncJob:
    """A job that was started; `info` is what was last read of it."""

    def __init__(self, transport: op.Transport, info: JobInfo) -> None:
        self._transport = transport
        self.info = info

    @property
    def id(self) -> str:
        return self.info.id

    @property
    def status(self) -> str:
        return self.info.status

    @property
    def model(self) -> str | None:
        """What to ask afterwards: `support@7`. None until the job has succeeded."""
        return self.info.fine_tuned_model

    def __repr__(self) -> str:
        return f"<Job {self.id} {self.status}>"

    async def refresh(self) -> JobInfo:
        return await self._update(op.GET_JOB)

    async def cancel(self) -> JobInfo:
        """Stops the job; checkpoints stay. Raises BadInput when it has already ended."""
        return await self._update(op.CANCEL_JOB)

    async def pause(self) -> JobInfo:
        return await self._update(op.PAUSE_JOB)

    async def resume(self) -> JobInfo:
        return await self._update(op.RESUME_JOB)

    async def events(self, *, follow: bool = False, poll_s: float = POLL_S) -> AsyncIterator[JobEvent]:
        """Oldest first. With `follow`, goes on until the job has ended and its last event was given."""
        last: str | None = None
        while True:
            ended = not follow or (await self.refresh()).finished
            for event in await self._events_since(last):
                last = event.id
                yield event
            if ended:
                return
            await asyncio.sleep(poll_s)

    async def metrics(self) -> list[Metric]:
        """Every measured step so far, in order."""
        return [metric async for event in self.events() if (metric := metric_of(event))]

    async def checkpoints(self) -> list[Checkpoint]:
        return await collect(self._transport, op.JOB_CHECKPOINTS, Checkpoint, {"id": self.id})

    async def wait(
        self, *, progress: ProgressOption = True, timeout_s: float | None = None, poll_s: float = POLL_S
    ) -> JobInfo:
        """Waits for the end and returns the succeeded job.

        `progress`: True shows a bar with loss and ETA on stderr, False nothing; a callable gets every event.
        Raises the job's own error when it failed, Conflict when it was cancelled, DeadlineExceeded after `timeout_s`.
        """
        with reporter(progress, f"job {self.id}") as report:
            try:
                async with asyncio.timeout(timeout_s):
                    await self._report_until_end(report, poll_s)
            except TimeoutError as error:
                raise DeadlineExceeded(f"{self.id} is still {self.status} after {timeout_s:g} s.") from error
        return self.result()

    def result(self) -> JobInfo:
        """The succeeded job. Raises what `wait` raises for one that did not succeed."""
        if self.info.status == "succeeded":
            return self.info
        raise failure_of(self.info)

    async def _report_until_end(self, report: Progress, poll_s: float) -> None:
        async for event in self.events(follow=True, poll_s=poll_s):
            report.event(event)

    async def _events_since(self, last: str | None) -> list[JobEvent]:
        """Events newer than `last`, oldest first (the service lists the newest first)."""
        newer: list[JobEvent] = []
        async for event in walk(self._transport, op.JOB_EVENTS, JobEvent, {"id": self.id}):
            if event.id == last:
                break
            newer.append(event)
        return newer[::-1]

    async def _update(self, operation: op.Operation) -> JobInfo:
        self.info = JobInfo.model_validate(await self._transport.call(operation, {"id": self.id}))
        return self.info


class AsyncJobs:
    """Jobs of the project."""

    def __init__(self, transport: op.Transport) -> None:
        self._transport = transport

    async def create(self, body: op.Json) -> AsyncJob:
        """Creates a job from a request body as in OpenAI's API; `AsyncTuneDock.tune` is the comfortable way."""
        return AsyncJob(self._transport, JobInfo.model_validate(await self._transport.call(op.CREATE_JOB, body=body)))

    async def get(self, job_id: str) -> AsyncJob:
        return AsyncJob(self._transport, JobInfo.model_validate(await self._transport.call(op.GET_JOB, {"id": job_id})))

    async def list(self, *, limit: int | None = None) -> list[AsyncJob]:
        """Newest first; `limit=None` lists everything."""
        return [
            AsyncJob(self._transport, info) async for info in walk(self._transport, op.LIST_JOBS, JobInfo, limit=limit)
        ]


def metric_of(event: JobEvent) -> Metric | None:
    """The numbers of a `metrics` event, None for other events."""
    if event.type != "metrics" or not event.data or "step" not in event.data:
        return None
    return Metric.model_validate(event.data)


def failure_of(job: JobInfo) -> TuneDockError:
    """Why `job` has no model."""
    if job.status == "failed":
        error: Any = job.error
        code, message = (error.code, error.message) if error else ("internal_error", "")
        return from_code(code, f"{job.id} failed: {message or 'no reason was given'}")
    if job.status == "cancelled":
        return Conflict(f"{job.id} was cancelled; its checkpoints are kept.", "invalid_state")
    return Conflict(f"{job.id} is {job.status}: wait for its end first.", "invalid_state")
