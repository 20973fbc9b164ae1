"""SQLite: how connections are opened, when they lock, what their errors mean."""

from __future__ import annotations

import sqlite3
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from sqlalchemy import URL, Connection, create_engine, event
from sqlalchemy.exc import DBAPIError

from .bell import SleepBell
from .engines import Engines, Fault
from .turns import FairTurns

BUSY_TIMEOUT_S = 30
_BEGIN = "tunedock_begin"

_FAULTS = {
    sqlite3.SQLITE_FULL: Fault.FULL,
    sqlite3.SQLITE_BUSY: Fault.BUSY,
    sqlite3.SQLITE_LOCKED: Fault.BUSY,
    sqlite3.SQLITE_IOERR: Fault.DOWN,
    sqlite3.SQLITE_CANTOPEN: Fault.DOWN,
    sqlite3.SQLITE_READONLY: Fault.DOWN,
    sqlite3.SQLITE_CORRUPT: Fault.DOWN,
    sqlite3.SQLITE_NOTADB: Fault.DOWN,
}


def wal_is_safe(version: tuple[int, int, int]) -> bool:
    """False where two connections can corrupt a WAL database (3.7.0 to 3.51.2, sqlite.org/wal.html, "WAL-reset bug").

    The fix was carried back to 3.50.7 and 3.44.6; 3.52.0 was withdrawn.
    """
    if version[:2] == (3, 44):
        return version >= (3, 44, 6)
    if version[:2] == (3, 50):
        return version >= (3, 50, 7)
    return version >= (3, 51, 3) and version[:2] != (3, 52)


def journal_pragmas(version: tuple[int, int, int]) -> tuple[str, str]:
    """Both pairs keep an acknowledged commit through a power cut. EXTRA also syncs the journal's directory entry."""
    return ("WAL", "FULL") if wal_is_safe(version) else ("DELETE", "EXTRA")


def driver() -> ModuleType:
    """The SQLite of `pip install 'tunedock[sqlite]'` where that is installed: newer than most systems', so WAL is safe."""
    return import_module("pysqlite3" if find_spec("pysqlite3") else "sqlite3")


def connect(path: Path, busy_timeout_s: float = BUSY_TIMEOUT_S) -> Engines:
    module = driver()
    journal, synchronous = journal_pragmas(module.sqlite_version_info)
    engine = create_engine(
        URL.create("sqlite", database=str(path)),
        module=module,
        connect_args={"timeout": busy_timeout_s},
        pool_size=8,
        max_overflow=24,
        pool_timeout=busy_timeout_s,
    )
    event.listen(engine, "connect", lambda connection, _record: _prepare(connection, journal, synchronous))
    event.listen(engine, "begin", _on_begin)
    return Engines(
        reader=engine,
        # IMMEDIATE: a transaction that reads first and writes later would otherwise fail instead of waiting.
        writer=engine.execution_options(**{_BEGIN: "BEGIN IMMEDIATE"}),
        fault=fault,
        bell=SleepBell(),
        turns=FairTurns(busy_timeout_s),
        description=f"SQLite {module.sqlite_version}, journal {journal}, synchronous {synchronous}",
    )


def fault(error: DBAPIError) -> Fault | None:
    code = getattr(error.orig, "sqlite_errorcode", None)
    return None if code is None else _FAULTS.get(code & 0xFF)


def _prepare(connection: Any, journal: str, synchronous: str) -> None:
    # The driver would open transactions by itself, and too late; `_on_begin` does it.
    connection.isolation_level = None
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA journal_mode={journal}")
    cursor.execute(f"PRAGMA synchronous={synchronous}")
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.close()


def _on_begin(connection: Connection) -> None:
    connection.exec_driver_sql(connection.get_execution_options().get(_BEGIN, "BEGIN"))
