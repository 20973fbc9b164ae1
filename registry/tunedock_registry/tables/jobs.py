"""The job queue: jobs, their events and their checkpoints."""

from __future__ import annotations

from typing import Any

from sqlalchemy import ForeignKey, Index, String, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from .base import Base, Sequenced


class JobRow(Sequenced, Base):
    """`worker_id`, `epoch` and `heartbeat` are the lease; see `leases.py`.

    `version_id` names a row of the versions table, without a foreign key: both are written in one transaction and point
    at each other.
    """

    __tablename__ = "jobs"
    __table_args__ = (
        Index("ix_jobs_project", "project", "seq"),
        Index("ix_jobs_status", "status", "seq"),
        {"sqlite_autoincrement": True},
    )

    project: Mapped[str] = mapped_column(String(64))
    status: Mapped[str] = mapped_column(String(16))
    validated: Mapped[bool] = mapped_column(default=False)
    adapter: Mapped[str] = mapped_column(String(64))
    model: Mapped[str]
    training_file: Mapped[str] = mapped_column(String(64))
    validation_file: Mapped[str | None] = mapped_column(String(64))
    suffix: Mapped[str | None] = mapped_column(String(64))
    seed: Mapped[int]
    method: Mapped[dict[str, Any]]
    hyperparameters: Mapped[dict[str, Any]]
    knobs: Mapped[dict[str, Any]]
    metadata_: Mapped[dict[str, Any] | None] = mapped_column("metadata")
    integrations: Mapped[list[Any] | None]
    error: Mapped[dict[str, Any] | None]
    traceback: Mapped[str | None]
    version_id: Mapped[int | None] = mapped_column(index=True)
    fine_tuned_model: Mapped[str | None]
    result_files: Mapped[list[Any]] = mapped_column(default=list)
    trained_tokens: Mapped[int | None]
    estimated_finish: Mapped[int | None]
    created_at: Mapped[int]
    started_at: Mapped[int | None]
    finished_at: Mapped[int | None]

    worker_id: Mapped[str | None] = mapped_column(String(128))
    epoch: Mapped[int] = mapped_column(default=0)
    heartbeat: Mapped[int] = mapped_column(default=0)
    attempts: Mapped[int] = mapped_column(default=0)
    saved_step: Mapped[int | None]
    not_before: Mapped[int] = mapped_column(default=0)


class JobMetadataRow(Base):
    """A job's metadata once more, one row a pair, for `list(metadata=…)` on any database."""

    __tablename__ = "job_metadata"

    job_seq: Mapped[int] = mapped_column(ForeignKey("jobs.seq", ondelete="CASCADE"), primary_key=True)
    key: Mapped[str] = mapped_column(String(64), primary_key=True)
    value: Mapped[str] = mapped_column(String(512))


class EventRow(Sequenced, Base):
    __tablename__ = "job_events"
    __table_args__ = (Index("ix_job_events_job", "job_id", "seq"), {"sqlite_autoincrement": True})

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"))
    created_at: Mapped[int]
    level: Mapped[str] = mapped_column(String(8))
    message: Mapped[str]
    type: Mapped[str] = mapped_column(String(8))
    data: Mapped[dict[str, Any]]


class CheckpointRow(Sequenced, Base):
    __tablename__ = "job_checkpoints"
    __table_args__ = (UniqueConstraint("job_id", "step_number"), {"sqlite_autoincrement": True})

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"))
    created_at: Mapped[int]
    step_number: Mapped[int]
    version_id: Mapped[int] = mapped_column(unique=True)
    fine_tuned_model: Mapped[str]
    metrics: Mapped[dict[str, Any]]
