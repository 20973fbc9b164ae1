"""The caller's side of the queue: create, look, cancel, pause, resume; and what a server notes about a job."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, exists, select
from sqlalchemy.orm import Session

from . import idempotency, job_states, job_writes
from .ids import new_id
from .job_queue import JobQueue
from .job_writes import add_event, checkpoint_record, event_record, find_job, job_not_found, job_record, move
from .paging import page
from .records import (
    Attempt,
    CheckpointRecord,
    EventLevel,
    EventRecord,
    EventType,
    JobRecord,
    JobSpec,
    JobStatus,
    Order,
    Page,
)
from .tables.base import bump
from .tables.jobs import CheckpointRow, EventRow, JobMetadataRow, JobRow

_DONE = {"cancel": "cancelled", "pause": "paused", "resume": "resumed"}


class Jobs(JobQueue):
    """Jobs of all projects. Another project's job is as absent as one that never was."""

    def create(
        self,
        project: str,
        spec: JobSpec,
        idempotency_key: str | None = None,
        body_sha256: str | None = None,
        retry: bool = False,
    ) -> JobRecord:
        """A job in `validating_files`. Give `body_sha256` on every call, and `retry` when the client says that this is
        a repetition (`x-stainless-retry-count` above 0): then the first try's job is returned, see `Attempt`.

        Raises Conflict (`idempotency_conflict`) when the key belongs to a request with another body.
        """
        attempt, now = Attempt(idempotency_key, body_sha256, retry), self._clock.now()
        with self._db.write() as session:
            known = idempotency.recall(session, project, "job", attempt, now)
            if known is not None:
                return job_record(find_job(session, known))
            row = _new_row(project, spec, now)
            session.add(row)
            session.flush()
            for key, value in (spec.metadata or {}).items():
                session.add(JobMetadataRow(job_seq=row.seq, key=key, value=value))
            idempotency.remember(session, project, "job", attempt, row.id, now)
            add_event(session, row.id, now, f"Created fine-tuning job: {row.id}")
            add_event(session, row.id, now, _validating(spec))
            bump(session)
            return job_record(row)

    def get(self, project: str, job_id: str) -> JobRecord:
        """Raises NotFound."""
        with self._db.read() as session:
            return job_record(_owned(session, project, job_id))

    def find(self, job_id: str) -> JobRecord:
        """Whatever its project. Raises NotFound."""
        with self._db.read() as session:
            return job_record(find_job(session, job_id))

    def list(
        self,
        project: str,
        after: str | None = None,
        limit: int = 20,
        metadata: dict[str, str] | None = None,
        *,
        without_metadata: bool = False,
    ) -> Page[JobRecord]:
        """Newest first. `metadata`: jobs that have all these pairs; `without_metadata`: jobs that were given none."""
        scope = [JobRow.project == project, *(_has_pair(key, value) for key, value in (metadata or {}).items())]
        if without_metadata:
            scope.append(JobRow.metadata_.is_(None))
        with self._db.read() as session:
            return page(session, JobRow, scope, job_record, after=after, limit=limit)

    def with_status(self, *statuses: JobStatus) -> Sequence[JobRecord]:
        """Of all projects, oldest first: what a server that starts has to pick up."""
        with self._db.read() as session:
            query = select(JobRow).where(JobRow.status.in_(statuses)).order_by(JobRow.seq)
            return [job_record(row) for row in session.scalars(query)]

    def request_cancel(self, project: str, job_id: str) -> JobRecord:
        """At once: from here on its worker can write nothing. Raises NotFound, BadInput (`invalid_state`)."""
        return self._request(project, job_id, "cancel")

    def request_pause(self, project: str, job_id: str) -> JobRecord:
        """The worker hears it with its next heartbeat, saves a step and lets go. Raises as `request_cancel`."""
        return self._request(project, job_id, "pause")

    def resume(self, project: str, job_id: str) -> JobRecord:
        """Back into the queue, with its tries counted anew. Raises as `request_cancel`."""
        return self._request(project, job_id, "resume")

    def mark_validated(self, job_id: str) -> JobRecord:
        """The files are good: `queued`, unless the job was paused or ended meanwhile. Raises NotFound."""
        now = self._clock.now()
        with self._db.write() as session:
            row = find_job(session, job_id)
            if not row.validated and row.status in ("validating_files", "paused"):
                row.validated = True
                if row.status == "validating_files":
                    move(session, row, "queued", now)
                add_event(session, row.id, now, "Files validated, moving job to queued state")
            return job_record(row)

    def fail_validation(self, job_id: str, error: dict[str, Any]) -> JobRecord:
        """`error` is `{code, message, param}`. Nothing happens when the job has ended meanwhile. Raises NotFound."""
        with self._db.write() as session:
            row = find_job(session, job_id)
            if row.status in ("validating_files", "queued", "paused"):
                job_writes.fail(session, row, error, self._clock.now())
            return job_record(row)

    def emit_system(
        self,
        job_id: str,
        message: str,
        type: EventType = "message",
        level: EventLevel = "info",
        data: dict[str, Any] | None = None,
    ) -> EventRecord:
        """An event of the server's own, such as what the gate found. Raises NotFound."""
        with self._db.write() as session:
            row = add_event(session, find_job(session, job_id).id, self._clock.now(), message, type, level, data)
            session.flush()
            return event_record(row)

    def events(
        self, project: str, job_id: str, after: str | None = None, limit: int = 20, order: Order = "desc"
    ) -> Page[EventRecord]:
        """Raises NotFound; BadInput for an unknown `after`."""
        with self._db.read() as session:
            scope = [EventRow.job_id == _owned(session, project, job_id).id]
            return page(session, EventRow, scope, event_record, after=after, limit=limit, order=order)

    def events_since(self, job_id: str, seq: int = 0, limit: int = 1000) -> Sequence[EventRecord]:
        """Oldest first, those with a higher `seq`: for watchers, which remember the last one they saw."""
        with self._db.read() as session:
            query = select(EventRow).where(EventRow.job_id == job_id, EventRow.seq > seq).order_by(EventRow.seq)
            return [event_record(row) for row in session.scalars(query.limit(limit))]

    def checkpoints(
        self, project: str, job_id: str, after: str | None = None, limit: int = 10
    ) -> Page[CheckpointRecord]:
        """Newest first. Raises NotFound; BadInput for an unknown `after`."""
        with self._db.read() as session:
            scope = [CheckpointRow.job_id == _owned(session, project, job_id).id]
            return page(session, CheckpointRow, scope, checkpoint_record, after=after, limit=limit)

    def _request(self, project: str, job_id: str, action: job_states.Action) -> JobRecord:
        now = self._clock.now()
        with self._db.write() as session:
            row = _owned(session, project, job_id)
            record = job_record(row)
            move(session, row, job_states.answer(row.id, record.status, row.validated, action), now)
            if action == "resume":
                row.attempts, row.not_before, row.worker_id = 0, 0, None
            add_event(session, row.id, now, f"Fine-tuning job {_DONE[action]}")
            return job_record(row)


def _owned(session: Session, project: str, job_id: str) -> JobRow:
    row = session.scalar(select(JobRow).where(JobRow.project == project, JobRow.id == job_id))
    if row is None:
        raise job_not_found(job_id)
    return row


def _has_pair(key: str, value: str) -> ColumnElement[bool]:
    return exists().where(
        JobMetadataRow.job_seq == JobRow.seq, JobMetadataRow.key == key, JobMetadataRow.value == value
    )


def _validating(spec: JobSpec) -> str:
    also = f" and validation file: {spec.validation_file}" if spec.validation_file else ""
    return f"Validating training file: {spec.training_file}{also}"


def _new_row(project: str, spec: JobSpec, now: int) -> JobRow:
    job_id = new_id("ftjob-")
    return JobRow(
        id=job_id,
        project=project,
        status="validating_files",
        validated=False,
        adapter=spec.adapter or f"ft-{job_id.removeprefix('ftjob-')[:8]}",
        model=spec.model,
        training_file=spec.training_file,
        validation_file=spec.validation_file,
        suffix=spec.suffix,
        seed=spec.seed,
        method=spec.method,
        hyperparameters=spec.hyperparameters,
        knobs=spec.knobs,
        metadata_=spec.metadata,
        integrations=spec.integrations,
        result_files=[],
        created_at=now,
        epoch=0,
        attempts=0,
    )
