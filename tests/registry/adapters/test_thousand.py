"""A thousand adapters: what a request and a list page cost then. Figures: `pytest -s`."""

from __future__ import annotations

import gc
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import insert
from support.shelf import Shelf
from tunedock_api.names import parse_ref
from tunedock_registry.adapters.following import Follower
from tunedock_registry.tables.adapters import AdapterRow, AliasRow, VersionRow
from tunedock_registry.tables.base import bump

ADAPTERS, VERSIONS = 1_000, 3


@pytest.fixture
def shelf(fast_folder: Path, database_url: str | None) -> Iterator[Shelf]:
    """`a0000`… with three ready versions each, `production` on two of them; the rows are copies of a published one."""
    shelf = Shelf.open(fast_folder, database_url)
    version = shelf.ready("template")
    with shelf.registry.db.write() as session:
        row = session.get_one(VersionRow, version.id)
        copied = {column.name: getattr(row, column.name) for column in VersionRow.__table__.columns}
        common = {"project": "default", "base_model": "tiny", "latest": VERSIONS, "created_at": 1}
        numbers = range(2, ADAPTERS + 2)
        session.execute(insert(AdapterRow), [{**common, "seq": seq, "name": f"a{seq - 2:04}"} for seq in numbers])
        session.execute(
            insert(VersionRow),
            [
                {**copied, "seq": seq * 10 + number, "adapter_seq": seq, "number": number, "digest": f"{seq:064x}"}
                for seq in numbers
                for number in range(1, VERSIONS + 1)
            ],
        )
        alias = {"alias": "production", "targets": [[1, 90.0], [2, 10.0]], "revision": 1, "updated_at": 1}
        session.execute(insert(AliasRow), [{**alias, "adapter_seq": seq} for seq in numbers])
        bump(session)
    yield shelf
    shelf.registry.close()


def _best_s(call: Callable[[], object], tries: int = 7) -> float:
    """Of several tries: the machine may be busy with something else."""
    times = []
    for _ in range(tries):
        begin = time.perf_counter()
        call()
        times.append(time.perf_counter() - begin)
    return min(times)


def test_a_request_is_resolved_in_microseconds(shelf: Shelf) -> None:
    snapshot = shelf.registry.adapters.snapshot()
    texts = [f"a{number:04}{tail}" for number in range(ADAPTERS) for tail in ("", "@3", "@production")]

    def resolve_all() -> None:
        for text in texts:
            ref = parse_ref(text)
            assert ref is not None
            assert snapshot.resolve("default", ref, "user-7") is not None

    per_request_s = _best_s(resolve_all) / len(texts)
    print(f"resolve with {ADAPTERS} adapters: {per_request_s * 1e6:.1f} µs")
    assert per_request_s <= 50e-6


def test_the_first_page_of_the_list_comes_in_milliseconds(shelf: Shelf) -> None:
    adapters = shelf.registry.adapters
    assert [record.name for record in adapters.list("default", limit=20).items][:2] == ["a0999", "a0998"]
    page_s = _best_s(lambda: adapters.list("default", limit=20))
    print(f"first page of {ADAPTERS} adapters: {page_s * 1e3:.1f} ms")
    assert page_s <= 50e-3


def test_a_server_follows_a_change_without_reading_every_manifest_again(shelf: Shelf) -> None:
    adapters = shelf.registry.adapters
    begin = time.perf_counter()
    first = adapters.snapshot()
    first_s = time.perf_counter() - begin

    def change_and_look() -> None:
        with shelf.registry.db.write() as session:
            bump(session)
        assert adapters.snapshot() is not first

    change_s = _best_s(change_and_look, 5)
    print(
        f"snapshot of {ADAPTERS * VERSIONS} versions: first {first_s * 1e3:.0f} ms, after a change {change_s * 1e3:.0f} ms"
    )
    assert len(list(first.versions())) == ADAPTERS * VERSIONS + 1
    assert change_s <= 0.3
    ref = parse_ref("a0500@2")
    assert ref is not None
    before, after = first.resolve("default", ref), adapters.snapshot().resolve("default", ref)
    assert before is not None
    assert after is not None
    assert after is before


def test_a_registered_version_takes_a_kilobyte_of_a_server(shelf: Shelf) -> None:
    follower = Follower()
    tracemalloc.start()
    try:
        with shelf.registry.db.read() as session:
            before, _ = tracemalloc.get_traced_memory()
            snapshot = follower.snapshot(session)
        gc.collect()
        each = (tracemalloc.get_traced_memory()[0] - before) / ADAPTERS
    finally:
        tracemalloc.stop()
    print(f"an adapter of {VERSIONS} versions with an alias: {each:.0f} bytes")
    assert len(snapshot.adapters) == ADAPTERS + 1
    assert each <= 1024 * (VERSIONS + 1)
