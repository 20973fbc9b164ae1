"""Databases that tests share, one after the other."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import text
from tunedock_registry.db import open_database
from tunedock_registry.tables import Base


def empty_database(url: str) -> None:
    """Removes every row but the change counter's."""
    db = open_database(Path(), url)
    with db.write() as session:
        names = ", ".join(name for name in Base.metadata.tables if name != "change_counter")
        session.execute(text(f"TRUNCATE {names} RESTART IDENTITY CASCADE"))
    db.close()
