"""PostgreSQL: one writer at a time by an advisory lock, readers on a snapshot, NOTIFY for whoever watches."""

from __future__ import annotations

import time
from typing import Any

from sqlalchemy import URL, Connection, create_engine, event
from sqlalchemy.exc import DBAPIError, OperationalError
from tunedock_api.errors import BadInput

from .engines import Engines, Fault
from .turns import NoTurns

LOCK_TIMEOUT_S = 30
# Any constant will do; it only has to be ours ("tune" in ASCII).
WRITER_LOCK = 0x74756E65
_LOCK = "tunedock_lock"
CHANNEL = "tunedock_changed"

_BUSY = ("55P03", "40001", "40P01")  # lock timeout, serialization failure, deadlock
_DOWN = ("08", "53", "57", "58")  # connection lost, no resources, shut down, system error

_SETTINGS = {
    # A writer that was stopped, or whose machine vanished, must lose the lock before the others give up waiting.
    "idle_in_transaction_session_timeout": "10s",
    "synchronous_commit": "on",
}


def connect(url: URL, lock_timeout_s: float = LOCK_TIMEOUT_S) -> Engines:
    """Raises BadInput when the driver is not installed. Connections are made when first used."""
    settings = _SETTINGS | {"lock_timeout": f"{int(lock_timeout_s * 1000)}ms"}
    options = " ".join(f"-c {name}={value}" for name, value in settings.items())
    try:
        engine = create_engine(
            url.set(drivername="postgresql+psycopg"),
            connect_args={"options": options, "connect_timeout": 10},
            pool_size=8,
            max_overflow=24,
            pool_pre_ping=True,
        )
    except ModuleNotFoundError as error:
        raise BadInput("PostgreSQL needs one more package: pip install 'tunedock[postgres]'.") from error
    event.listen(engine, "begin", _on_begin)
    return Engines(
        reader=engine.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True),
        writer=engine.execution_options(**{_LOCK: True}),
        fault=fault,
        turns=NoTurns(),
        description=f"PostgreSQL at {url.host or 'a local socket'}, database {url.database}",
        bell=NotifyBell(url.set(drivername="postgresql").render_as_string(hide_password=False)),
    )


def fault(error: DBAPIError) -> Fault | None:
    """By SQLSTATE (PostgreSQL documentation, appendix A)."""
    state: str = getattr(error.orig, "sqlstate", None) or ""
    if state == "53100":
        return Fault.FULL
    if state in _BUSY:
        return Fault.BUSY
    # Without a state: the driver could not even talk to the server.
    lost = isinstance(error, OperationalError) and not state
    return Fault.DOWN if lost or error.connection_invalidated or state[:2] in _DOWN else None


def _on_begin(connection: Connection) -> None:
    if connection.get_execution_options().get(_LOCK):
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({WRITER_LOCK})")


class NotifyBell:
    """Rings when the trigger on `change_counter` (migration 0003) notifies, and every `poll_s` in case one was missed.

    It keeps one connection. While the database is away it rings by the clock alone.
    """

    def __init__(self, conninfo: str, poll_s: float = 1.0) -> None:
        self._conninfo = conninfo
        self._poll_s = poll_s
        self._connection: Any = None

    def wait(self, timeout_s: float) -> None:
        import psycopg  # only in installations that use it

        pause_s = min(timeout_s, self._poll_s)
        started = time.monotonic()
        try:
            if self._connection is None:
                self._connection = psycopg.connect(self._conninfo, autocommit=True, connect_timeout=10)
                self._connection.execute(f"LISTEN {CHANNEL}")
                return  # what happened before we listened is only in the counter
            for _ in self._connection.notifies(timeout=pause_s, stop_after=1):
                return
        except psycopg.Error:
            self.close()
            time.sleep(max(0.0, pause_s - (time.monotonic() - started)))

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
