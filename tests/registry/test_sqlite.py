from __future__ import annotations

import re
import threading
import time as real_time
from pathlib import Path

import pytest
from sqlalchemy import select, text
from tunedock_api.errors import Unavailable
from tunedock_registry import sqlite
from tunedock_registry.db import Database, open_database
from tunedock_registry.migrate import migrate
from tunedock_registry.tables.base import ChangeCounter, bump


@pytest.fixture
def db(tmp_path: Path) -> Database:
    db = open_database(tmp_path / "tunedock.db")
    migrate(db)
    return db


def counter(db: Database) -> int:
    with db.read() as session:
        return session.scalars(select(ChangeCounter.value)).one()


@pytest.mark.parametrize(
    ("version", "safe"),
    [
        ((3, 40, 1), False),
        ((3, 44, 5), False),
        ((3, 44, 6), True),
        ((3, 45, 0), False),
        ((3, 50, 6), False),
        ((3, 50, 7), True),
        ((3, 51, 2), False),
        ((3, 51, 3), True),
        ((3, 52, 0), False),
        ((3, 53, 4), True),
    ],
)
def test_wal_is_used_only_where_it_cannot_corrupt(version: tuple[int, int, int], safe: bool) -> None:
    assert sqlite.wal_is_safe(version) is safe
    assert sqlite.journal_pragmas(version) == (("WAL", "FULL") if safe else ("DELETE", "EXTRA"))


def test_every_connection_has_the_durable_settings(db: Database) -> None:
    journal, synchronous = sqlite.journal_pragmas(sqlite.driver().sqlite_version_info)
    with db.read() as session:
        assert session.scalar(text("PRAGMA journal_mode")) == journal.lower()
        assert session.scalar(text("PRAGMA synchronous")) == {"FULL": 2, "EXTRA": 3}[synchronous]
        assert session.scalar(text("PRAGMA foreign_keys")) == 1
        assert session.scalar(text("PRAGMA busy_timeout")) == 30_000


def test_the_operator_is_told_what_the_registry_stands_on(db: Database) -> None:
    assert re.fullmatch(r"SQLite 3\.\d+\.\d+, journal (DELETE, synchronous EXTRA|WAL, synchronous FULL)", db.describe())


def test_a_write_that_raises_leaves_nothing(db: Database) -> None:
    def half() -> None:
        with db.write() as session:
            bump(session)
            raise KeyError

    with pytest.raises(KeyError):
        half()
    assert counter(db) == 0


def test_writers_take_turns_and_lose_no_update(db: Database) -> None:
    def read_then_write() -> None:
        for _ in range(10):
            with db.write() as session:
                row = session.scalars(select(ChangeCounter)).one()
                row.value += 1

    threads = [threading.Thread(target=read_then_write) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counter(db) == 40


def test_writers_of_one_process_are_served_in_the_order_they_came(db: Database) -> None:
    served: list[int] = []

    def write(number: int) -> None:
        with db.write() as session:
            bump(session)
            served.append(number)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(6)]
    with db.write() as session:
        bump(session)
        for thread in threads:
            thread.start()
            real_time.sleep(0.05)
    for thread in threads:
        thread.join()
    assert served == list(range(6))


def test_a_writer_that_waits_in_vain_gets_a_typed_error_and_loses_no_turn(tmp_path: Path) -> None:
    db = Database(sqlite.connect(tmp_path / "tunedock.db", busy_timeout_s=0.05))
    migrate(db)
    errors: list[str] = []

    def write() -> None:
        try:
            _bump(db)
        except Unavailable as error:
            errors.append(error.code)

    thread = threading.Thread(target=write)
    with db.write():
        thread.start()
        thread.join()
    assert errors == ["storage_unavailable"]
    _bump(db)
    assert counter(db) == 1


def test_a_reader_keeps_its_view_while_others_want_to_write(db: Database) -> None:
    with db.read() as session:
        before = session.scalars(select(ChangeCounter.value)).one()
        writer = threading.Thread(target=lambda: _bump(db))
        writer.start()
        assert session.scalars(select(ChangeCounter.value)).one() == before
    writer.join()
    assert counter(db) == before + 1


def _bump(db: Database) -> None:
    with db.write() as session:
        bump(session)


def test_a_full_disk_is_a_typed_error_and_nothing_is_torn(db: Database) -> None:
    def fill() -> None:
        with db.write() as session:
            bump(session)
            connection = session.connection()
            pages = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
            connection.exec_driver_sql(f"PRAGMA max_page_count={pages}")
            connection.exec_driver_sql("CREATE TABLE big (x)")
            connection.exec_driver_sql("INSERT INTO big VALUES (zeroblob(1000000))")

    with pytest.raises(Unavailable) as caught:
        fill()
    assert caught.value.code == "storage_full"
    assert "disk is full" in caught.value.message
    assert counter(db) == 0


def test_a_database_held_too_long_by_another_process_is_a_typed_error(tmp_path: Path) -> None:
    db = Database(sqlite.connect(tmp_path / "tunedock.db", busy_timeout_s=0.05))
    migrate(db)
    other = sqlite.driver().connect(tmp_path / "tunedock.db", isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    with pytest.raises(Unavailable) as caught, db.write() as session:
        bump(session)
    assert (caught.value.code, caught.value.retry_after_s) == ("storage_unavailable", 1.0)
    other.execute("ROLLBACK")
    _bump(db)
    assert counter(db) == 1


def test_a_file_that_is_no_database_is_a_typed_error(tmp_path: Path) -> None:
    (tmp_path / "tunedock.db").write_bytes(b"not a database" * 1000)
    with pytest.raises(Unavailable) as caught:
        migrate(open_database(tmp_path / "tunedock.db"))
    assert caught.value.code == "storage_unavailable"


class SlowDriver:
    """A driver whose statement is under way until `go`; `closed_under_it` says whether its connection was closed meanwhile."""

    Error = OSError

    def __init__(self) -> None:
        self.under_way, self.go = threading.Event(), threading.Event()
        self.running = self.closed = self.closed_under_it = False

    def connect(self, *_: object, **__: object) -> SlowDriver:
        return self

    def execute(self, _: str) -> SlowDriver:
        self.running = True
        self.under_way.set()
        self.go.wait(10)
        self.running = False
        return self

    def fetchone(self) -> tuple[int]:
        return (1,)

    def close(self) -> None:
        self.closed, self.closed_under_it = True, self.running


def test_a_bell_is_not_closed_under_the_statement_of_its_waiter(tmp_path: Path) -> None:
    # With SQLite's own driver that is a segmentation fault, once in thousands of stops.
    driver = SlowDriver()
    bell = sqlite.VersionBell(driver, tmp_path / "x.db", interval_s=0.0)  # type: ignore[arg-type]
    waiter = threading.Thread(target=bell.wait, args=(0.0,))
    waiter.start()
    assert driver.under_way.wait(10)
    closer = threading.Thread(target=bell.close)
    closer.start()
    real_time.sleep(0.05)
    driver.go.set()
    for thread in (waiter, closer):
        thread.join(10)
    assert (driver.closed, driver.closed_under_it) == (True, False)


def test_a_closed_bell_opens_nothing_again(tmp_path: Path) -> None:
    driver = SlowDriver()
    driver.go.set()
    bell = sqlite.VersionBell(driver, tmp_path / "x.db")  # type: ignore[arg-type]
    bell.close()
    bell.wait(0.0)
    assert not driver.under_way.is_set()
