"""What is particular to PostgreSQL; `conftest.py` runs everything else on it too."""

from __future__ import annotations

import threading
import time as real_time
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import make_url, text
from support.registry import spec
from tunedock_api.errors import BadInput, Unavailable
from tunedock_registry import postgres as backend
from tunedock_registry.db import Database, open_database
from tunedock_registry.migrate import migrate
from tunedock_registry.registry import Registry
from tunedock_registry.tables.base import bump


@pytest.fixture
def db(shared_database: str) -> Iterator[Database]:
    db = open_database(Path(), shared_database)
    yield db
    db.close()


def test_readers_see_one_snapshot_and_cannot_write(db: Database) -> None:
    with db.read() as session:
        assert session.scalar(text("SHOW transaction_isolation")) == "repeatable read"
        assert session.scalar(text("SHOW transaction_read_only")) == "on"


def test_a_commit_is_on_disk_before_it_is_acknowledged(db: Database) -> None:
    with db.write() as session:
        assert session.scalar(text("SHOW synchronous_commit")) == "on"


def test_writers_take_turns(db: Database) -> None:
    order: list[str] = []
    held = threading.Event()

    def slow() -> None:
        with db.write() as session:
            bump(session)
            held.set()
            real_time.sleep(0.2)
            order.append("slow")

    thread = threading.Thread(target=slow)
    thread.start()
    held.wait()
    with db.write() as session:
        bump(session)
        order.append("fast")
    thread.join()
    assert order == ["slow", "fast"]


def test_a_writer_that_hangs_costs_the_others_a_typed_error(shared_database: str) -> None:
    one = Database(backend.connect(make_url(shared_database), lock_timeout_s=0.1))
    with one.write() as session:
        bump(session)
        with pytest.raises(Unavailable) as caught, one.write() as other:
            bump(other)
    assert caught.value.code == "storage_unavailable"
    one.close()


def test_a_lost_connection_is_a_typed_error_and_the_next_call_works(db: Database) -> None:
    def lose() -> None:
        with db.write() as session:
            bump(session)
            _kill_others(db)
            bump(session)

    with pytest.raises(Unavailable):
        lose()
    with db.write() as session:
        bump(session)


def _kill_others(db: Database) -> None:
    with db.read() as session:
        session.execute(
            text(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE pid <> pg_backend_pid() AND datname = current_database()"
            )
        )


def test_a_server_that_is_not_there_is_a_typed_error(tmp_path: Path) -> None:
    with pytest.raises(Unavailable) as caught:
        migrate(open_database(Path(), f"postgresql://postgres@/tunedock?host={tmp_path}"))
    assert caught.value.code == "storage_unavailable"
    assert str(tmp_path) not in caught.value.message


def test_another_kind_of_database_is_refused_with_what_to_write() -> None:
    with pytest.raises(BadInput, match="postgresql://USER@HOST/NAME"):
        open_database(Path(), "mysql://root@localhost/x")


@pytest.mark.parametrize("database_url", ["postgres"], indirect=True)
def test_text_that_cannot_be_stored_is_the_callers_mistake(registry: Registry) -> None:
    for bad in ({"suffix": "a\0b"}, {"knobs": {"k": "a\0b"}}, {"suffix": "x" * 65}):
        with pytest.raises(BadInput, match="cannot be stored"):
            registry.jobs.create("default", spec(**bad))
