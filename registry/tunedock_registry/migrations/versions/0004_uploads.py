"""Uploads in parts."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from tunedock_registry.tables.base import BigInt, Json

revision = "0004"
down_revision = "0003"

SEQ = {"sqlite_autoincrement": True}


def _sequenced() -> tuple[sa.Column[int], sa.Column[str]]:
    return sa.Column("seq", BigInt, primary_key=True, autoincrement=True), sa.Column(
        "id", sa.String(64), nullable=False
    )


def upgrade() -> None:
    op.create_table(
        "uploads",
        *_sequenced(),
        sa.Column("project", sa.String(64), nullable=False),
        sa.Column("filename", sa.String, nullable=False),
        sa.Column("purpose", sa.String(32), nullable=False),
        sa.Column("mime_type", sa.String, nullable=False),
        sa.Column("size_bytes", BigInt, nullable=False),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("expires_after_s", BigInt),
        sa.Column("file_id", sa.String(64)),
        sa.Column("part_ids", Json),
        sa.Column("created_at", BigInt, nullable=False),
        sa.Column("expires_at", BigInt, nullable=False),
        sa.UniqueConstraint("id"),
        **SEQ,
    )
    op.create_index("ix_uploads_expires_at", "uploads", ["expires_at"])
    op.create_table(
        "upload_parts",
        *_sequenced(),
        sa.Column("upload_id", sa.String(64), sa.ForeignKey("uploads.id", ondelete="CASCADE"), nullable=False),
        sa.Column("size_bytes", BigInt, nullable=False),
        sa.Column("sha256", sa.String(64), sa.ForeignKey("blobs.sha256"), nullable=False),
        sa.Column("created_at", BigInt, nullable=False),
        sa.UniqueConstraint("id"),
        **SEQ,
    )
    op.create_index("ix_upload_parts_upload_id", "upload_parts", ["upload_id"])
    op.create_index("ix_upload_parts_sha256", "upload_parts", ["sha256"])


def downgrade() -> None:
    op.drop_table("upload_parts")
    op.drop_table("uploads")
