"""The worker's side of the queue: claim a job, prove to be alive, report, let go."""

from __future__ import annotations

from typing import Any, Literal

from sqlalchemy import ColumnElement, and_, or_, select
from sqlalchemy.orm import Session

from . import job_writes
from .clock import Clock
from .db import Database
from .job_states import HELD, retry_delay_s
from .job_writes import add_event, fenced, job_record, move
from .leases import Beat, LeaseWatch
from .records import CheckpointRecord, Claim, Control, EventLevel, EventRecord, EventType, JobRecord
from .tables.jobs import JobRow

MAX_ATTEMPTS = 3
_MAX_DELAY_S = retry_delay_s(MAX_ATTEMPTS)


class JobQueue:
    """Safe to use from any number of processes. Every call of a worker whose claim has passed to somebody else, or whose
    job was cancelled, raises Conflict (`stale_lease`) and has written nothing."""

    def __init__(
        self, db: Database, clock: Clock, *, watch: LeaseWatch | None = None, max_attempts: int = MAX_ATTEMPTS
    ) -> None:
        self._db = db
        self._clock = clock
        self._watch = watch or LeaseWatch()
        self._max_attempts = max_attempts

    def claim(self, worker_id: str) -> Claim | None:
        """The oldest job that waits, or None. Looks for abandoned jobs first: call it every 2 s while idle."""
        self.requeue_abandoned()
        with self._db.read() as session:
            if self._next(session) is None:
                return None
        with self._db.write() as session:
            row = self._next(session)
            return None if row is None else self._take(session, row, worker_id)

    def heartbeat(self, claim: Claim) -> Control:
        """Call it every 5 s; a worker that cannot reach the registry for 20 s must stop by itself."""
        with self._db.write() as session:
            row = session.scalar(select(JobRow).where(JobRow.id == claim.job.id))
            if row is not None and row.status == "cancelled" and row.epoch == claim.epoch:
                return Control.CANCEL
            row = fenced(session, claim)
            row.heartbeat += 1
            return Control.PAUSE if row.status == "paused" else Control.CONTINUE

    def emit(
        self,
        claim: Claim,
        message: str,
        type: EventType = "message",
        level: EventLevel = "info",
        data: dict[str, Any] | None = None,
    ) -> EventRecord:
        """Adds an event. `data` holds plain JSON values; leave out what was not measured."""
        with self._db.write() as session:
            row = add_event(session, fenced(session, claim).id, self._clock.now(), message, type, level, data)
            session.flush()
            return job_writes.event_record(row)

    def progress(
        self,
        claim: Claim,
        *,
        hyperparameters: dict[str, Any] | None = None,
        method: dict[str, Any] | None = None,
        trained_tokens: int | None = None,
        estimated_finish: int | None = None,
        saved_step: int | None = None,
        integrations: list[Any] | None = None,
    ) -> None:
        """Notes what is given. `saved_step`: training can resume from this step; reaching a new one makes the job's
        count of tries start again, so that only a job that gets nowhere runs out of them."""
        with self._db.write() as session:
            row = fenced(session, claim)
            row.hyperparameters = hyperparameters or row.hyperparameters
            row.method = method or row.method
            row.integrations = integrations or row.integrations
            row.trained_tokens = row.trained_tokens if trained_tokens is None else trained_tokens
            row.estimated_finish = row.estimated_finish if estimated_finish is None else estimated_finish
            if saved_step is not None and saved_step > (row.saved_step or 0):
                row.saved_step, row.attempts = saved_step, 1

    def add_checkpoint(self, claim: Claim, step: int, version_id: int, metrics: dict[str, Any]) -> CheckpointRecord:
        """Notes that `version_id` is this job at `step`."""
        with self._db.write() as session:
            row = job_writes.add_checkpoint(session, claim, step, version_id, metrics, self._clock.now())
            session.flush()
            return job_writes.checkpoint_record(row)

    def release(self, claim: Claim, to: Literal["queued", "paused", "cancelled"]) -> JobRecord:
        """Lets go of the job, saved as far as it is: `queued` when the worker shuts down (the try does not count),
        `paused` or `cancelled` after its heartbeat said so."""
        with self._db.write() as session:
            row = job_writes.find_job(session, claim.job.id)
            if to == "cancelled" and row.status == "cancelled" and row.epoch == claim.epoch:
                row.worker_id = None
                return job_record(row)
            row = fenced(session, claim)
            row.worker_id = None
            if to == "queued":
                row.attempts = max(0, row.attempts - 1)
            # Paused meanwhile: a worker that shuts down leaves it so.
            if row.status != to and not (row.status == "paused" and to == "queued"):
                move(session, row, to, self._clock.now())
            return job_record(row)

    def fail(self, claim: Claim, error: dict[str, Any], traceback: str | None = None) -> JobRecord:
        """Ends the job: trying again would not help. `error` is `{code, message, param}`, for the caller's eyes."""
        with self._db.write() as session:
            row = fenced(session, claim)
            row.worker_id = None
            job_writes.fail(session, row, error, self._clock.now(), traceback)
            return job_record(row)

    def retry(self, claim: Claim, traceback: str) -> JobRecord:
        """After an unexpected failure: back into the queue with a delay, or failed after the last try."""
        with self._db.write() as session:
            row = fenced(session, claim)
            row.traceback = traceback
            self._again(session, row, _last_line(traceback))
            return job_record(row)

    def requeue_abandoned(self) -> list[str]:
        """Takes jobs away from workers that have stopped beating for a lease; returns their ids."""
        with self._db.read() as session:
            held = session.execute(select(JobRow.id, JobRow.epoch, JobRow.heartbeat).where(_held())).all()
        expired = self._watch.expired(((job, (epoch, beat)) for job, epoch, beat in held), self._clock.monotonic())
        return [job for job, beat in expired.items() if self._abandon(job, beat)]

    def release_worker(self, worker_id: str) -> list[str]:
        """For the parent of a worker that has seen it die: no need to wait for its leases. Returns the jobs' ids."""
        with self._db.read() as session:
            rows = session.scalars(select(JobRow).where(_held(), JobRow.worker_id == worker_id)).all()
        return [row.id for row in rows if self._abandon(row.id, (row.epoch, row.heartbeat))]

    def _abandon(self, job_id: str, beat: Beat) -> bool:
        """False when the worker has moved after all, or somebody else was faster."""
        with self._db.write() as session:
            row = session.scalar(select(JobRow).where(_held(), JobRow.id == job_id))
            if row is None or (row.epoch, row.heartbeat) != beat:
                return False
            self._again(session, row, "its worker died or lost touch")
            return True

    def _again(self, session: Session, row: JobRow, why: str) -> None:
        now = self._clock.now()
        row.worker_id = None
        if row.status == "paused":
            return
        if row.attempts >= self._max_attempts:
            message = f"The job failed {row.attempts} times in a row; the last time: {why}"
            job_writes.fail(session, row, {"code": "training_failed", "message": message, "param": None}, now)
            return
        row.not_before = now + retry_delay_s(row.attempts)
        move(session, row, "queued", now)
        message = f"Attempt {row.attempts} of {self._max_attempts} was interrupted: {why}. The job is queued again."
        add_event(session, row.id, now, message, level="warn")

    def _next(self, session: Session) -> JobRow | None:
        query = select(JobRow).where(JobRow.status == "queued", self._due()).order_by(JobRow.seq).limit(1)
        return session.scalar(query)

    def _due(self) -> ColumnElement[bool]:
        """A delay further away than any that we set comes from a clock that was wrong then or now: ignore it."""
        now = self._clock.now()
        return or_(JobRow.not_before <= now, JobRow.not_before > now + _MAX_DELAY_S)

    def _take(self, session: Session, row: JobRow, worker_id: str) -> Claim:
        now = self._clock.now()
        move(session, row, "running", now)
        row.worker_id, row.epoch, row.attempts, row.heartbeat = worker_id, row.epoch + 1, row.attempts + 1, 0
        if row.started_at is None:
            row.started_at = now
            add_event(session, row.id, now, "Fine-tuning job started")
        else:
            add_event(session, row.id, now, f"Fine-tuning job continues (attempt {row.attempts})")
        return Claim(job_record(row), row.epoch, worker_id)


def _held() -> ColumnElement[bool]:
    return and_(JobRow.status.in_(HELD), JobRow.worker_id.is_not(None))


def _last_line(traceback: str) -> str:
    """The line that names the exception, shortened: frames hold paths, which no caller should see."""
    lines = traceback.strip().splitlines()
    return lines[-1][:500] if lines else "unknown failure"
