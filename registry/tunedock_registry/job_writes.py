"""What may be done to a job inside a transaction. Every change of a job's status goes through `move`.

These take the caller's session, so that publishing a version and finishing its job are one transaction.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session
from tunedock_api.errors import Conflict, Internal, NotFound
from tunedock_api.names import checkpoint_tag

from .ids import new_id
from .job_states import FINAL, may_move
from .records import CheckpointRecord, Claim, EventLevel, EventRecord, EventType, JobRecord, JobResult, JobStatus
from .rows import to_record
from .tables.base import bump
from .tables.jobs import CheckpointRow, EventRow, JobRow
from .webhook_events import announce


def job_record(row: JobRow) -> JobRecord:
    return to_record(JobRecord, row, metadata=row.metadata_)


def event_record(row: EventRow) -> EventRecord:
    return to_record(EventRecord, row)


def checkpoint_record(row: CheckpointRow) -> CheckpointRecord:
    return to_record(CheckpointRecord, row, fine_tuned_model_checkpoint=row.fine_tuned_model)


def find_job(session: Session, job_id: str) -> JobRow:
    """Raises NotFound with OpenAI's text."""
    row = session.scalar(select(JobRow).where(JobRow.id == job_id))
    if row is None:
        raise job_not_found(job_id)
    return row


def job_not_found(job_id: str) -> NotFound:
    return NotFound(f"Could not find fine tune: {job_id[:80]}", "fine_tune_not_found", "fine_tune_id")


def move(session: Session, row: JobRow, to: JobStatus, now: int) -> None:
    """The one place where a status changes. A finished or queued job has no worker."""
    old: JobStatus = row.status  # type: ignore[assignment]  # the column holds nothing else
    if not may_move(old, to):
        raise Internal(f"A job cannot go from {old} to {to}.")
    row.status = to
    if to in FINAL:
        row.finished_at, row.estimated_finish = now, None
        # Success is announced when the gate has let the version through.
        if to != "succeeded":
            announce(session, row.project, f"fine_tuning.job.{to}", row.id, now)
    if to == "queued":
        row.worker_id = None
    bump(session)


def fenced(session: Session, claim: Claim, *, paused_too: bool = True) -> JobRow:
    """The claimed job, if the claim still holds. Raises Conflict (`stale_lease`): the worker must stop then."""
    row = session.scalar(select(JobRow).where(JobRow.id == claim.job.id))
    allowed = ("running", "paused") if paused_too else ("running",)
    if row is None or row.epoch != claim.epoch or row.worker_id != claim.worker_id or row.status not in allowed:
        status = "gone" if row is None else f"{row.status}, epoch {row.epoch}"
        raise Conflict(
            f"The claim on job {claim.job.id} (epoch {claim.epoch}) does not hold any more: the job is {status}.",
            "stale_lease",
        )
    return row


def add_event(
    session: Session,
    job_id: str,
    now: int,
    message: str,
    type: EventType = "message",
    level: EventLevel = "info",
    data: dict[str, Any] | None = None,
) -> EventRow:
    row = EventRow(
        id=new_id("ftevent-"), job_id=job_id, created_at=now, level=level, message=message, type=type, data=data or {}
    )
    session.add(row)
    return row


def fail(session: Session, row: JobRow, error: dict[str, Any], now: int, traceback: str | None = None) -> None:
    """`error` has `code`, `message` and `param`; the message becomes the last event."""
    row.error = error
    row.traceback = traceback or row.traceback
    move(session, row, "failed", now)
    add_event(session, row.id, now, error["message"], level="error", data={"code": error["code"]})


def succeed(
    session: Session, claim: Claim, version_id: int, fine_tuned_model: str, result: JobResult | None, now: int
) -> None:
    """The job's end, in the transaction that makes its version. Raises Conflict (`stale_lease`)."""
    row = fenced(session, claim, paused_too=False)
    move(session, row, "succeeded", now)
    row.version_id, row.fine_tuned_model, row.error = version_id, fine_tuned_model, None
    if result is not None:
        row.trained_tokens = result.trained_tokens
        row.hyperparameters = result.hyperparameters or row.hyperparameters
        row.result_files = list(result.result_files)
    add_event(session, row.id, now, f"New fine-tuned model created: {fine_tuned_model}")
    add_event(session, row.id, now, "The job has successfully completed")


def result_of(session: Session, claim: Claim) -> int | None:
    """The version that this job has already published, however often publish is called again."""
    return session.scalar(select(JobRow.version_id).where(JobRow.id == claim.job.id, JobRow.status == "succeeded"))


def add_checkpoint(
    session: Session, claim: Claim, step: int, version_id: int, metrics: dict[str, Any], now: int
) -> CheckpointRow:
    """Notes a checkpoint's version. The same step again (after a resume) replaces the earlier one.

    Raises Conflict (`stale_lease`).
    """
    job = fenced(session, claim)
    row = session.scalar(select(CheckpointRow).where(CheckpointRow.job_id == job.id, CheckpointRow.step_number == step))
    if row is not None:
        row.version_id, row.metrics = version_id, metrics
        return row
    ref = f"{job.adapter}@{checkpoint_tag(job.id, step)}"
    row = CheckpointRow(
        id=new_id("ftckpt_"),
        job_id=job.id,
        created_at=now,
        step_number=step,
        version_id=version_id,
        fine_tuned_model=ref,
        metrics=metrics,
    )
    session.add(row)
    add_event(session, job.id, now, f"Checkpoint created at step {step} with Snapshot ID: {ref}")
    return row
