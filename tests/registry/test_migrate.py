from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import inspect, text
from support.postgres import Postgres
from support.processes import CONTEXT
from support.registry import open_registry
from tunedock_api.errors import BadInput
from tunedock_registry import migrations
from tunedock_registry.db import Database, open_database
from tunedock_registry.migrate import downgrade, migrate
from tunedock_registry.tables import Base


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, home_root: Path) -> Iterator[str]:
    """An empty database of its own."""
    if request.param == "sqlite":
        home_root.mkdir()
        yield f"sqlite:///{home_root}/tunedock.db"
        return
    postgres: Postgres = request.getfixturevalue("postgres")
    yield postgres.create_database("tunedock_migrate")
    postgres.drop_database("tunedock_migrate")


@pytest.fixture
def db(url: str) -> Iterator[Database]:
    db = open_database(Path(), url)
    yield db
    db.close()


def tables(db: Database) -> set[str]:
    with db.read() as session:
        return set(inspect(session.connection()).get_table_names()) - {"alembic_version"}


def columns(db: Database) -> dict[str, list[str]]:
    with db.read() as session:
        inspector = inspect(session.connection())
        return {table: [column["name"] for column in inspector.get_columns(table)] for table in tables(db)}


def revisions() -> list[str]:
    """Oldest first."""
    folder = Path(migrations.__file__).parent / "versions"
    return sorted(path.name[:4] for path in folder.glob("[0-9]*.py"))


def test_the_migrated_schema_is_the_one_the_classes_describe(db: Database) -> None:
    migrate(db)
    with db.read() as session:
        context = MigrationContext.configure(session.connection(), opts={"compare_type": True})
        assert compare_metadata(context, Base.metadata) == []


def test_migrations_go_down_to_nothing_and_up_again(db: Database) -> None:
    migrate(db)
    full = tables(db)
    assert full == set(Base.metadata.tables)
    downgrade(db, "base")
    assert tables(db) == set()
    migrate(db)
    assert tables(db) == full


def test_every_single_migration_can_be_undone_and_done_again(db: Database) -> None:
    migrate(db)
    for revision in reversed(revisions()[:-1]):
        downgrade(db, revision)
        after_undo = columns(db)
        migrate(db)
        downgrade(db, revision)
        assert columns(db) == after_undo


def test_a_schema_of_a_newer_release_is_refused_with_what_to_do(db: Database) -> None:
    migrate(db)
    with db.write() as session:
        session.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(BadInput, match=r"schema 9999.*pip install --upgrade tunedock"):
        migrate(db)


def test_a_failing_migration_leaves_the_old_schema(db: Database) -> None:
    with db.write() as session:
        session.execute(text("CREATE TABLE job_events (x INTEGER)"))
    with pytest.raises(Exception, match="already exists"):
        migrate(db)
    assert tables(db) == {"job_events"}


def test_processes_that_open_a_fresh_registry_together_all_succeed(url: str, tmp_path: Path) -> None:
    children = [CONTEXT.Process(target=open_registry, args=(tmp_path / "home", None, None, url)) for _ in range(4)]
    for child in children:
        child.start()
    for child in children:
        child.join(60)
    assert [child.exitcode for child in children] == [0, 0, 0, 0]
