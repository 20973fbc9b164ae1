"""Alembic's entry point. The connection comes from `migrate.py`, which also holds the writer's lock."""

from __future__ import annotations

from alembic import context

from tunedock_registry.tables import Base

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    # SQLite can roll DDL back; Alembic is only careful with old drivers, and we open transactions ourselves.
    transactional_ddl=True,
    # SQLite cannot alter most things in place: `batch_alter_table` copies the table there.
    render_as_batch=True,
)
context.run_migrations()
