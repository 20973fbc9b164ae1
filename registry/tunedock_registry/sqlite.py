"""SQLite: how connections are opened, when they lock, what their errors mean."""

from __future__ import annotations

import sqlite3
import threading
import time
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from sqlalchemy import URL, Connection, create_engine, event
from sqlalchemy.exc import DBAPIError

from .engines import Engines, Fault
from .turns import FairTurns

BUSY_TIMEOUT_S = 30
CACHE_KIB = 256
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
        bell=VersionBell(module, path),
        turns=FairTurns(busy_timeout_s),
        description=f"SQLite {module.sqlite_version}, journal {journal}, synchronous {synchronous}",
    )


class VersionBell:
    """Rings when any other connection has committed, by `PRAGMA data_version` (sqlite.org/pragma.html).

    Looking takes 20 microseconds; reading the counter through a session takes a thousand, ten times a second, from whoever
    streams tokens in this process. It misses nothing: the version that was seen last stays known between two waits.
    """

    def __init__(self, module: ModuleType, path: Path, interval_s: float = 0.1) -> None:
        self._module, self._path, self._interval_s = module, path, interval_s
        self._connection: Any = None
        self._seen: int | None = None
        # A connection that is closed under a statement of another thread ends the process with a segmentation fault.
        self._looking = threading.Lock()
        self._closed = False

    def wait(self, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while not self._rings() and (left_s := deadline - time.monotonic()) > 0:
            time.sleep(min(left_s, self._interval_s))

    def _rings(self) -> bool:
        with self._looking:
            if self._closed:
                return False
            try:
                if self._connection is None:
                    self._connection = self._module.connect(self._path, timeout=0, check_same_thread=False)
                (version,) = self._connection.execute("PRAGMA data_version").fetchone()
            except self._module.Error:  # somebody is committing, or the reader will say what is wrong
                return False
            before, self._seen = self._seen, version
            return bool(before != version)

    def close(self) -> None:
        """Safe while another thread waits: that one hears no more rings."""
        with self._looking:
            self._closed = True
            if self._connection is not None:
                self._connection.close()


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
    # Each of up to 32 connections keeps as much of its own (2,000 by default), and the system caches the file as well.
    cursor.execute(f"PRAGMA cache_size=-{CACHE_KIB}")
    cursor.close()


def _on_begin(connection: Connection) -> None:
    connection.exec_driver_sql(connection.get_execution_options().get(_BEGIN, "BEGIN"))
