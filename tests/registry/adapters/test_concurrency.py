"""Many clients at once: compare-and-swap loses no move, numbers have no gaps, and a publish races with a collector."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
from support.shelf import Shelf
from tunedock_api.errors import Conflict
from tunedock_registry.adapters.folders import is_intact
from tunedock_registry.adapters.versions import LIVE
from tunedock_registry.records import Target

CLIENTS = 8


@pytest.fixture
def shelf(fast_folder: Path, database_url: str | None) -> Iterator[Shelf]:
    shelf = Shelf.open(fast_folder, database_url)
    yield shelf
    shelf.registry.close()


def test_of_all_clients_that_saw_the_same_revision_one_moves_the_alias(shelf: Shelf) -> None:
    adapters = shelf.registry.adapters
    for seed in (1, 2):
        shelf.ready(seed=seed)
    shelf.promote(1)

    def client(_number: int) -> int:
        won = 0
        for _ in range(15):
            seen = adapters.alias("default", "support", "production")
            other = 3 - seen.targets[0].version
            with suppress(Conflict):
                moved = adapters.set_alias("default", "support", "production", [Target(other)], seen.revision)
                assert moved.revision == seen.revision + 1
                won += 1
        return won

    with ThreadPoolExecutor(CLIENTS) as pool:
        won = sum(pool.map(client, range(CLIENTS)))
    moves = adapters.history("default", "support", limit=1_000).items
    assert adapters.alias("default", "support", "production").revision == won + 1 == len(moves)
    assert [move.after for move in moves[1:]] == [move.before for move in moves[:-1]]


def test_versions_published_at_once_get_numbers_without_gaps(shelf: Shelf) -> None:
    sources = [shelf.prepare(seed) for seed in range(4)]

    def client(number: int) -> int | None:
        source = sources[number % len(sources)]
        return shelf.registry.adapters.publish("default", "support", source, origin="imported").number

    with ThreadPoolExecutor(CLIENTS) as pool:
        numbers = list(pool.map(client, range(3 * CLIENTS)))
    assert sorted(number or 0 for number in numbers) == list(range(1, 3 * CLIENTS + 1))


def test_a_collector_never_takes_the_files_of_a_version_that_is_being_published(shelf: Shelf) -> None:
    """The same bytes come and go all the time, and every version that may be served has them."""
    adapters, source = shelf.registry.adapters, shelf.prepare(1)

    def publish_and_retire(_number: int) -> None:
        version = adapters.publish("default", "support", source, origin="imported")
        assert is_intact(adapters.path(version), version.digest)
        adapters.retire(version.id)

    def collect(_number: int) -> None:
        adapters.collect(grace_s=0)

    with ThreadPoolExecutor(CLIENTS) as pool:
        work = [pool.submit(task, n) for n in range(40) for task in (publish_and_retire, collect)]
        for future in work:
            future.result()
    for version in adapters.in_state(*LIVE):
        assert is_intact(adapters.path(version), version.digest)
    adapters.collect(grace_s=-1e10)
    assert not list(shelf.registry.home.adapters.iterdir())
    assert not list(shelf.registry.home.tmp.iterdir())
