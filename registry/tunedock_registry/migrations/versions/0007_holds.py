"""What live servers still use of versions that are offered no more."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from tunedock_registry.tables.base import BigInt

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    op.create_table(
        "holds",
        sa.Column("holder", sa.String(64), primary_key=True),
        sa.Column("digest", sa.String(64), primary_key=True),
        sa.Column("beat", BigInt, nullable=False),
    )


def downgrade() -> None:
    op.drop_table("holds")
