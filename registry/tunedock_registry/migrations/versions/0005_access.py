"""API keys and checkpoint permissions."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from tunedock_registry.tables.base import BigInt, Json

revision = "0005"
down_revision = "0004"

SEQ = {"sqlite_autoincrement": True}


def _sequenced() -> tuple[sa.Column[int], sa.Column[str]]:
    return sa.Column("seq", BigInt, primary_key=True, autoincrement=True), sa.Column(
        "id", sa.String(64), nullable=False
    )


def upgrade() -> None:
    op.create_table(
        "api_keys",
        *_sequenced(),
        sa.Column("project", sa.String(64), nullable=False),
        sa.Column("name", sa.String, nullable=False),
        sa.Column("prefix", sa.String(16), nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("scopes", Json, nullable=False),
        sa.Column("limits", Json, nullable=False),
        sa.Column("created_at", BigInt, nullable=False),
        sa.Column("expires_at", BigInt),
        sa.Column("revoked_at", BigInt),
        sa.UniqueConstraint("id"),
        sa.UniqueConstraint("sha256"),
        **SEQ,
    )
    op.create_index("ix_api_keys_project", "api_keys", ["project"])
    op.create_table(
        "checkpoint_permissions",
        *_sequenced(),
        sa.Column("project", sa.String(64), nullable=False),
        sa.Column("checkpoint", sa.String(200), nullable=False),
        sa.Column("version_id", BigInt, nullable=False),
        sa.Column("project_id", sa.String(64), nullable=False),
        sa.Column("created_at", BigInt, nullable=False),
        sa.UniqueConstraint("id"),
        sa.UniqueConstraint("project", "checkpoint", "project_id"),
        **SEQ,
    )
    op.create_index("ix_checkpoint_permissions_project_id", "checkpoint_permissions", ["project_id"])


def downgrade() -> None:
    op.drop_table("checkpoint_permissions")
    op.drop_table("api_keys")
