"""Files, blobs, idempotency, jobs with their events and checkpoints, and the change counter."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from tunedock_registry.tables.base import BigInt, Json

revision = "0001"
down_revision = None

SEQ = {"sqlite_autoincrement": True}


def _sequenced() -> tuple[sa.Column[int], sa.Column[str]]:
    return sa.Column("seq", BigInt, primary_key=True, autoincrement=True), sa.Column(
        "id", sa.String(64), nullable=False
    )


def upgrade() -> None:
    counter = op.create_table(
        "change_counter",
        sa.Column("id", BigInt, primary_key=True, autoincrement=False),
        sa.Column("value", BigInt, nullable=False),
    )
    op.bulk_insert(counter, [{"id": 1, "value": 0}])
    _create_files()
    _create_jobs()
    _create_job_details()


def downgrade() -> None:
    for table in (
        "job_checkpoints",
        "job_events",
        "job_metadata",
        "jobs",
        "idempotency",
        "files",
        "blobs",
        "change_counter",
    ):
        op.drop_table(table)


def _create_files() -> None:
    op.create_table(
        "blobs",
        sa.Column("sha256", sa.String(64), primary_key=True),
        sa.Column("size_bytes", BigInt, nullable=False),
        sa.Column("touched_at", BigInt, nullable=False),
    )
    op.create_table(
        "files",
        *_sequenced(),
        sa.Column("project", sa.String(64), nullable=False),
        sa.Column("filename", sa.String, nullable=False),
        sa.Column("purpose", sa.String(32), nullable=False),
        sa.Column("size_bytes", BigInt, nullable=False),
        sa.Column("sha256", sa.String(64), sa.ForeignKey("blobs.sha256"), nullable=False),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("status_details", sa.String),
        sa.Column("report", Json),
        sa.Column("created_at", BigInt, nullable=False),
        sa.Column("expires_at", BigInt),
        sa.UniqueConstraint("id"),
        **SEQ,
    )
    op.create_index("ix_files_project", "files", ["project", "seq"])
    op.create_index("ix_files_sha256", "files", ["sha256"])
    op.create_index("ix_files_expires_at", "files", ["expires_at"])
    op.create_table(
        "idempotency",
        sa.Column("project", sa.String(64), primary_key=True),
        sa.Column("kind", sa.String(16), primary_key=True),
        sa.Column("key", sa.String(300), primary_key=True),
        sa.Column("object_id", sa.String(64), nullable=False),
        sa.Column("body_sha256", sa.String(64)),
        sa.Column("created_at", BigInt, nullable=False),
    )
    op.create_index("ix_idempotency_created_at", "idempotency", ["created_at"])


def _create_jobs() -> None:
    op.create_table(
        "jobs",
        *_sequenced(),
        sa.Column("project", sa.String(64), nullable=False),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("validated", sa.Boolean, nullable=False),
        sa.Column("adapter", sa.String(64), nullable=False),
        sa.Column("model", sa.String, nullable=False),
        sa.Column("training_file", sa.String(64), nullable=False),
        sa.Column("validation_file", sa.String(64)),
        sa.Column("suffix", sa.String(64)),
        sa.Column("seed", BigInt, nullable=False),
        *(sa.Column(name, Json, nullable=False) for name in ("method", "hyperparameters", "knobs")),
        *(sa.Column(name, Json) for name in ("metadata", "integrations", "error")),
        sa.Column("traceback", sa.String),
        sa.Column("version_id", BigInt),
        sa.Column("fine_tuned_model", sa.String),
        sa.Column("result_files", Json, nullable=False),
        sa.Column("trained_tokens", BigInt),
        sa.Column("estimated_finish", BigInt),
        sa.Column("created_at", BigInt, nullable=False),
        sa.Column("started_at", BigInt),
        sa.Column("finished_at", BigInt),
        sa.Column("worker_id", sa.String(128)),
        *(sa.Column(name, BigInt, nullable=False) for name in ("epoch", "heartbeat", "attempts")),
        sa.Column("saved_step", BigInt),
        sa.Column("not_before", BigInt, nullable=False),
        sa.UniqueConstraint("id"),
        **SEQ,
    )
    op.create_index("ix_jobs_project", "jobs", ["project", "seq"])
    op.create_index("ix_jobs_status", "jobs", ["status", "seq"])
    op.create_index("ix_jobs_version_id", "jobs", ["version_id"])


def _create_job_details() -> None:
    op.create_table(
        "job_metadata",
        sa.Column("job_seq", BigInt, sa.ForeignKey("jobs.seq", ondelete="CASCADE"), primary_key=True),
        sa.Column("key", sa.String(64), primary_key=True),
        sa.Column("value", sa.String(512), nullable=False),
    )
    op.create_table(
        "job_events",
        *_sequenced(),
        sa.Column("job_id", sa.String(64), sa.ForeignKey("jobs.id", ondelete="CASCADE"), nullable=False),
        sa.Column("created_at", BigInt, nullable=False),
        sa.Column("level", sa.String(8), nullable=False),
        sa.Column("message", sa.String, nullable=False),
        sa.Column("type", sa.String(8), nullable=False),
        sa.Column("data", Json, nullable=False),
        sa.UniqueConstraint("id"),
        **SEQ,
    )
    op.create_index("ix_job_events_job", "job_events", ["job_id", "seq"])
    op.create_table(
        "job_checkpoints",
        *_sequenced(),
        sa.Column("job_id", sa.String(64), sa.ForeignKey("jobs.id", ondelete="CASCADE"), nullable=False),
        sa.Column("created_at", BigInt, nullable=False),
        sa.Column("step_number", BigInt, nullable=False),
        sa.Column("version_id", BigInt, nullable=False),
        sa.Column("fine_tuned_model", sa.String, nullable=False),
        sa.Column("metrics", Json, nullable=False),
        sa.UniqueConstraint("id"),
        sa.UniqueConstraint("job_id", "step_number"),
        sa.UniqueConstraint("version_id"),
        **SEQ,
    )
