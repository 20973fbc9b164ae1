"""PostgreSQL tells whoever listens that the change counter moved. SQLite's watchers read the counter instead."""

from __future__ import annotations

from alembic import op

revision = "0003"
down_revision = "0002"

_FUNCTION = """
CREATE FUNCTION tunedock_changed() RETURNS trigger LANGUAGE plpgsql AS
$$ BEGIN PERFORM pg_notify('tunedock_changed', ''); RETURN NULL; END $$
"""
_TRIGGER = """
CREATE TRIGGER tunedock_changed AFTER UPDATE ON change_counter
FOR EACH STATEMENT EXECUTE FUNCTION tunedock_changed()
"""


def upgrade() -> None:
    if op.get_context().dialect.name == "postgresql":
        op.execute(_FUNCTION)
        op.execute(_TRIGGER)


def downgrade() -> None:
    if op.get_context().dialect.name == "postgresql":
        op.execute("DROP TRIGGER tunedock_changed ON change_counter")
        op.execute("DROP FUNCTION tunedock_changed()")
