"""Adapters, versions, aliases and their moves."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from tunedock_registry.tables.base import BigInt, Json

revision = "0002"
down_revision = "0001"

SEQ = {"sqlite_autoincrement": True}


def _seq() -> sa.Column[int]:
    return sa.Column("seq", BigInt, primary_key=True, autoincrement=True)


def _adapter() -> sa.Column[int]:
    return sa.Column("adapter_seq", BigInt, sa.ForeignKey("adapters.seq"), nullable=False)


def upgrade() -> None:
    op.create_table(
        "adapters",
        _seq(),
        sa.Column("project", sa.String(64), nullable=False),
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("base_model", sa.String, nullable=False),
        sa.Column("latest", BigInt, nullable=False),
        sa.Column("created_at", BigInt, nullable=False),
        sa.Column("deleted_at", BigInt),
        sa.UniqueConstraint("project", "name"),
        **SEQ,
    )
    _create_versions()
    _create_aliases()


def downgrade() -> None:
    for table in ("alias_moves", "aliases", "versions", "adapters"):
        op.drop_table(table)


def _create_versions() -> None:
    op.create_table(
        "versions",
        _seq(),
        _adapter(),
        sa.Column("number", BigInt),
        sa.Column("tag", sa.String(64)),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("state_at", BigInt, nullable=False),
        sa.Column("reason", sa.String),
        sa.Column("origin", sa.String(16), nullable=False),
        sa.Column("base_model", sa.String, nullable=False),
        sa.Column("rank", BigInt, nullable=False),
        sa.Column("size_bytes", BigInt, nullable=False),
        sa.Column("manifest", sa.Text, nullable=False),
        sa.Column("probe", sa.Text),
        sa.Column("parity", Json, nullable=False),
        sa.Column("metrics", Json, nullable=False),
        sa.Column("pinned", sa.Boolean, nullable=False),
        sa.Column("job_id", sa.String(64)),
        sa.Column("created_at", BigInt, nullable=False),
        sa.UniqueConstraint("adapter_seq", "number"),
        sa.UniqueConstraint("adapter_seq", "tag"),
        **SEQ,
    )
    op.create_index("ix_versions_state", "versions", ["state", "seq"])
    op.create_index("ix_versions_digest", "versions", ["digest"])
    numbered = sa.text("number IS NOT NULL")
    op.create_index(
        "uq_versions_job_result",
        "versions",
        ["job_id"],
        unique=True,
        sqlite_where=numbered,
        postgresql_where=numbered,
    )


def _create_aliases() -> None:
    op.create_table(
        "aliases",
        sa.Column("adapter_seq", BigInt, sa.ForeignKey("adapters.seq"), primary_key=True, autoincrement=False),
        sa.Column("alias", sa.String(64), primary_key=True),
        sa.Column("targets", Json, nullable=False),
        sa.Column("revision", BigInt, nullable=False),
        sa.Column("undo", BigInt),
        sa.Column("updated_at", BigInt, nullable=False),
    )
    op.create_table(
        "alias_moves",
        _seq(),
        sa.Column("id", sa.String(64), nullable=False),
        _adapter(),
        sa.Column("alias", sa.String(64), nullable=False),
        sa.Column("before", Json),
        sa.Column("after", Json, nullable=False),
        sa.Column("revision", BigInt, nullable=False),
        sa.Column("undo", BigInt),
        sa.Column("actor", sa.String, nullable=False),
        sa.Column("reason", sa.String, nullable=False),
        sa.Column("created_at", BigInt, nullable=False),
        sa.UniqueConstraint("id"),
        sa.UniqueConstraint("adapter_seq", "alias", "revision"),
        **SEQ,
    )
