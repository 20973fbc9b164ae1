"""The connection to S3 fails at any request of publish and collect: nothing is torn, no version is lost.

A request may be lost before it arrives, or its answer after it had its effect; once, so that the client tries again, or
for good, so that the call fails and is done again when the store is back.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.adapter_crashes import NOW, OFFERED
from support.cutting_proxy import Cuts, cutting_proxy
from support.registry import FakeTime, open_registry
from support.s3 import S3, running_s3
from support.shelf import Shelf
from tunedock_api.errors import TuneDockError
from tunedock_registry.adapters.folders import is_intact
from tunedock_registry.object_store import open_store

pytestmark = pytest.mark.skipif(
    "TUNEDOCK_TEST_S3" in os.environ, reason="requests are signed for the real endpoint's name"
)

Prepare = Callable[[Shelf], object]
Call = Callable[[Shelf], object]


@pytest.fixture(scope="module")
def s3() -> Iterator[tuple[S3, Cuts]]:
    with (
        running_s3() as server,
        cutting_proxy(server.environment["AWS_ENDPOINT_URL"]) as (url, cuts),
        pytest.MonkeyPatch.context() as patch,
    ):
        for name, value in (server.environment | {"AWS_ENDPOINT_URL": url}).items():
            patch.setenv(name, value)
        yield server, cuts


def _publish(shelf: Shelf) -> None:
    if not shelf.registry.adapters.list("default").items:
        shelf.publish()


def _retire(shelf: Shelf) -> None:
    shelf.registry.adapters.retire(shelf.ready().id)


def _collect(shelf: Shelf) -> None:
    shelf.registry.adapters.collect(grace_s=-1)


CALLS: dict[str, tuple[Prepare, Call]] = {
    "publish": (lambda shelf: shelf.prepare(), _publish),
    "collect": (_retire, _collect),
}


def _open(folder: Path, database: Path, url: str) -> Shelf:
    registry = open_registry(
        folder / "home", FakeTime(NOW), database_url=f"sqlite:///{database}", store=open_store(url)
    )
    return Shelf.around(registry, folder)


def _play(s3: tuple[S3, Cuts], folder: Path, name: str, at: int, after: bool, lasting: bool) -> int:
    """One call with one failure, the judging, the same call again. Returns the number of requests of the first."""
    server, cuts = s3
    prepare, call = CALLS[name]
    url, database = server.fresh_url(), folder / "shared.db"
    folder.mkdir()
    shelf = _open(folder / "here", database, url)
    cuts.plan()
    prepare(shelf)
    cuts.plan(at, after=after, lasting=lasting)
    code = _error_code(lambda: call(shelf))
    num_requests = len(cuts.requests)
    assert code == ("storage_unavailable" if lasting and at else ""), "one failure is survived, a lasting one is told"
    cuts.plan()
    _check(shelf, folder / f"elsewhere-{at}-{after}-{lasting}", database, url)
    call(shelf)
    _check(shelf, folder / f"again-{at}-{after}-{lasting}", database, url)
    _collect(shelf)
    stored = {key.split("/")[1] for key, _ in open_store(url).list("adapters")}
    assert stored == {f"sha256-{version.digest}" for version in shelf.registry.adapters.in_state(*OFFERED)}
    assert list(shelf.registry.home.tmp.iterdir()) == []
    shelf.registry.close()
    return num_requests


def _error_code(call: Callable[[], object]) -> str:
    try:
        call()
    except TuneDockError as error:
        return error.code
    return ""


def _check(shelf: Shelf, folder: Path, database: Path, url: str) -> None:
    """Every version that may be served is whole on a machine that has nothing yet."""
    elsewhere = _open(folder, database, url)
    for version in shelf.registry.adapters.in_state(*OFFERED):
        assert is_intact(elsewhere.registry.adapters.path(version), version.digest)
    elsewhere.registry.close()


@pytest.mark.parametrize("name", CALLS)
def test_a_connection_that_fails_at_some_request(s3: tuple[S3, Cuts], fast_folder: Path, name: str) -> None:
    """The campaign fails at every one."""
    num_requests = _play(s3, fast_folder / "rehearsal", name, 0, after=False, lasting=False)
    assert num_requests > 4
    _play(s3, fast_folder / "cut", name, num_requests // 2, after=True, lasting=False)


@pytest.mark.campaign
@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("after", [False, True], ids=["request lost", "answer lost"])
def test_a_connection_that_fails_once_at_every_request(
    s3: tuple[S3, Cuts], fast_folder: Path, name: str, after: bool
) -> None:
    num_requests = _play(s3, fast_folder / "rehearsal", name, 0, after=False, lasting=False)
    for at in range(1, num_requests + 1):
        _play(s3, fast_folder / f"{at}", name, at, after=after, lasting=False)


@pytest.mark.campaign
@pytest.mark.parametrize("name", CALLS)
def test_a_store_that_goes_away_for_good(s3: tuple[S3, Cuts], fast_folder: Path, name: str) -> None:
    """The client tries for seconds before it gives up: every eighth request, each time others."""
    num_requests = _play(s3, fast_folder / "rehearsal", name, 0, after=False, lasting=False)
    first = random.SystemRandom().randint(1, 8)
    for at in range(first, num_requests + 1, 8):
        _play(s3, fast_folder / f"{at}", name, at, after=False, lasting=True)
