"""Brings the schema to what this release expects. Several processes may start at once: one migrates, the others wait."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection
from tunedock_api.errors import BadInput

from .db import Database

_FOLDER = Path(__file__).parent / "migrations"


def migrate(db: Database, target: str = "head") -> None:
    """Upgrades to `target`. Raises BadInput when the schema was written by a newer release."""
    script = ScriptDirectory.from_config(_config())
    with db.read() as session:
        if _revision(session.connection()) == script.get_current_head() and target == "head":
            return
    with db.write() as session:
        connection = session.connection()
        _refuse_newer(_revision(connection), script)
        command.upgrade(_config(connection), target)


def downgrade(db: Database, target: str) -> None:
    """Takes the schema back to revision `target`, or to nothing with "base". Data of dropped tables is gone."""
    with db.write() as session:
        command.downgrade(_config(session.connection()), target)


def _config(connection: Connection | None = None) -> Config:
    config = Config()
    config.set_main_option("script_location", str(_FOLDER).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config


def _revision(connection: Connection) -> str | None:
    return MigrationContext.configure(connection).get_current_revision()


def _refuse_newer(revision: str | None, script: ScriptDirectory) -> None:
    known = [entry.revision for entry in script.walk_revisions()]
    if revision is not None and revision not in known:
        raise BadInput(
            f"The registry has schema {revision}, and this TuneDock knows schemas up to {known[0]}: a newer release wrote "
            "it. Run `pip install --upgrade tunedock`, or use another home with --home.",
            param="home",
        )
