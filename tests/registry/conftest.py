"""Every test that takes `registry` runs on SQLite and on a real PostgreSQL."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.databases import empty_database
from support.postgres import Postgres, running_postgres
from support.registry import FakeTime, open_registry
from tunedock_registry.db import open_database
from tunedock_registry.migrate import migrate
from tunedock_registry.registry import Registry

BACKENDS = ("sqlite", "postgres")


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    with running_postgres() as server:
        yield server


@pytest.fixture(scope="session")
def shared_database(postgres: Postgres) -> Iterator[str]:
    """The URL of a migrated database that the tests of one run share, one after the other."""
    url = postgres.create_database("tunedock_shared")
    db = open_database(Path(), url)
    migrate(db)
    db.close()
    yield url
    postgres.drop_database("tunedock_shared")


@pytest.fixture
def time() -> FakeTime:
    return FakeTime()


@pytest.fixture
def home_root() -> Iterator[Path]:
    """A folder in memory where there is one: the calls are the same, and syncing a thousand commits costs nothing."""
    memory = Path("/dev/shm")  # noqa: S108
    root = Path(tempfile.mkdtemp(prefix="td-home-", dir=memory if memory.is_dir() else None))
    yield root / "home"
    shutil.rmtree(root)


@pytest.fixture(scope="session")
def migrated_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty, migrated SQLite database to copy: migrating for every test would take longer than the tests."""
    path = tmp_path_factory.mktemp("migrated") / "tunedock.db"
    db = open_database(path)
    migrate(db)
    db.close()
    return path


@pytest.fixture(params=BACKENDS)
def database_url(request: pytest.FixtureRequest, home_root: Path, migrated_file: Path) -> str | None:
    """None means SQLite under the home; otherwise an empty, migrated PostgreSQL database."""
    if request.param == "sqlite":
        home_root.mkdir()
        shutil.copy(migrated_file, home_root)
        return None
    url: str = request.getfixturevalue("shared_database")
    empty_database(url)
    return url


Open = Callable[[], Registry]


@pytest.fixture
def reopen(home_root: Path, database_url: str | None, time: FakeTime) -> Iterator[Open]:
    """Opens the same registry once more, as another process would."""
    opened: list[Registry] = []

    def open_again() -> Registry:
        opened.append(open_registry(home_root, time, database_url=database_url))
        return opened[-1]

    yield open_again
    for registry in opened:
        registry.close()


@pytest.fixture
def registry(reopen: Open) -> Registry:
    return reopen()
