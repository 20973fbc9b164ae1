"""The database behind the registry: short transactions, one writer at a time, typed errors.

SQLite lets one connection write at a time. PostgreSQL is asked for the same with an advisory lock (`postgres.py`), so
that both behave alike: what commits later also has the higher `seq`, and a transaction that has read a row may rely on
it until it commits. Our write transactions take milliseconds; nothing slow happens inside one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import make_url
from sqlalchemy.exc import DataError, DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm import Session
from tunedock_api.errors import BadInput, Unavailable

from . import postgres, sqlite
from .engines import Engines, Fault

_MESSAGES = {
    Fault.FULL: "The registry's disk is full: nothing was written. Free some space and try again.",
    Fault.BUSY: "The registry is busy: another process holds it. Try again.",
    Fault.DOWN: "The registry's database cannot be reached or read: nothing was written. Try again.",
}


@dataclass(frozen=True)
class Database:
    """Two ways in: `read` (a consistent view) and `write` (exclusive; all or nothing)."""

    engines: Engines

    @contextmanager
    def read(self) -> Iterator[Session]:
        """Raises Unavailable when the database does not answer."""
        with self._typed(), Session(self.engines.reader, expire_on_commit=False) as session, session.begin():
            yield session

    @contextmanager
    def write(self) -> Iterator[Session]:
        """Commits at the end, rolls back on any exception.

        Raises Unavailable: `storage_full`, or `storage_unavailable` after waiting for other writers in vain.
        """
        with (
            self._turn(),
            self._typed(),
            Session(self.engines.writer, expire_on_commit=False) as session,
            session.begin(),
        ):
            session.connection()  # Takes the turn now, not with the first statement: files are looked at in here, too.
            yield session

    @contextmanager
    def _turn(self) -> Iterator[None]:
        if not self.engines.turns.take():
            raise unavailable(Fault.BUSY)
        try:
            yield
        finally:
            self.engines.turns.give()

    @contextmanager
    def _typed(self) -> Iterator[None]:
        try:
            yield
        except DataError as error:
            # PostgreSQL only, for instance a NUL character or an over-long text.
            raise BadInput(
                "A text or number in the request cannot be stored: shorten it, or remove NUL characters."
            ) from error
        except DBAPIError as error:
            fault = self.engines.fault(error)
            if fault is None:
                raise
            raise unavailable(fault) from error
        except PoolTimeout as error:
            raise unavailable(Fault.BUSY) from error

    def describe(self) -> str:
        """Product, version and durability, for `doctor` and the log."""
        return self.engines.description

    def wait(self, timeout_s: float) -> None:
        """Until the change counter may have moved, or `timeout_s` is over. For one thread at a time."""
        self.engines.bell.wait(timeout_s)

    def close(self) -> None:
        self.engines.dispose()


def unavailable(fault: Fault) -> Unavailable:
    code = "storage_full" if fault is Fault.FULL else "storage_unavailable"
    return Unavailable(_MESSAGES[fault], code, retry_after_s=None if fault is Fault.FULL else 1.0)


def open_database(db_path: Path, url: str | None = None) -> Database:
    """`url` None means SQLite at `db_path`; otherwise `sqlite:///…` or `postgresql://…`."""
    if url is None:
        return Database(sqlite.connect(db_path))
    parsed = make_url(url)
    backend = parsed.get_backend_name()
    if backend == "sqlite" and parsed.database:
        return Database(sqlite.connect(Path(parsed.database)))
    if backend == "postgresql":
        return Database(postgres.connect(parsed))
    raise BadInput(
        f"TUNEDOCK_DATABASE_URL names {backend!r}: use sqlite:///PATH or postgresql://USER@HOST/NAME.",
        param="database_url",
    )
