"""Webhook endpoints, events and deliveries."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from tunedock_registry.tables.base import BigInt, Json

revision = "0006"
down_revision = "0005"

SEQ = {"sqlite_autoincrement": True}


def _sequenced() -> tuple[sa.Column[int], sa.Column[str]]:
    return sa.Column("seq", BigInt, primary_key=True, autoincrement=True), sa.Column(
        "id", sa.String(64), nullable=False
    )


def _cascade(target: str) -> sa.ForeignKey:
    return sa.ForeignKey(target, ondelete="CASCADE")


def upgrade() -> None:
    op.create_table(
        "webhook_endpoints",
        *_sequenced(),
        sa.Column("project", sa.String(64), nullable=False),
        sa.Column("name", sa.String, nullable=False),
        sa.Column("url", sa.String, nullable=False),
        sa.Column("event_types", Json, nullable=False),
        sa.Column("secret", sa.String, nullable=False),
        sa.Column("old_secret", sa.String),
        sa.Column("old_secret_until", BigInt),
        sa.Column("created_at", BigInt, nullable=False),
        sa.Column("updated_at", BigInt, nullable=False),
        sa.UniqueConstraint("id"),
        **SEQ,
    )
    op.create_index("ix_webhook_endpoints_project", "webhook_endpoints", ["project"])
    op.create_table(
        "webhook_events",
        *_sequenced(),
        sa.Column("project", sa.String(64), nullable=False),
        sa.Column("type", sa.String(64), nullable=False),
        sa.Column("object_id", sa.String(64), nullable=False),
        sa.Column("created_at", BigInt, nullable=False),
        sa.UniqueConstraint("id"),
        sa.UniqueConstraint("type", "object_id"),
        **SEQ,
    )
    op.create_table(
        "webhook_deliveries",
        sa.Column("seq", BigInt, primary_key=True, autoincrement=True),
        sa.Column("event_id", sa.String(64), _cascade("webhook_events.id"), nullable=False),
        sa.Column("endpoint_id", sa.String(64), _cascade("webhook_endpoints.id"), nullable=False),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("attempts", BigInt, nullable=False),
        sa.Column("next_at", BigInt, nullable=False),
        sa.Column("status_code", BigInt),
        sa.UniqueConstraint("event_id", "endpoint_id"),
        **SEQ,
    )
    op.create_index("ix_webhook_deliveries_endpoint_id", "webhook_deliveries", ["endpoint_id"])
    op.create_index("ix_webhook_deliveries_due", "webhook_deliveries", ["status", "next_at"])


def downgrade() -> None:
    for table in ("webhook_deliveries", "webhook_events", "webhook_endpoints"):
        op.drop_table(table)
