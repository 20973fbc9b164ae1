"""A rejected version keeps its row and its reason; its files can be looked at for the grace time and go then."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.shelf import Shelf
from tunedock_api.errors import Conflict
from tunedock_registry.adapters.folders import is_intact
from tunedock_registry.records import VersionRecord

GRACE_S = 60


@pytest.fixture
def shelf(tmp_path: Path, database_url: str | None) -> Iterator[Shelf]:
    shelf = Shelf.open(tmp_path, database_url)
    yield shelf
    shelf.registry.close()


def _rejected(shelf: Shelf, seed: int = 1) -> VersionRecord:
    version = shelf.publish(seed=seed)
    shelf.registry.adapters.set_state(version.id, "verifying")
    return shelf.registry.adapters.set_state(version.id, "rejected", "it does nothing")


def _collect_after(shelf: Shelf, seconds: float) -> None:
    shelf.time.advance(seconds)
    shelf.registry.adapters.collect(grace_s=GRACE_S)


def test_its_files_go_after_the_grace_time_and_its_reason_stays(shelf: Shelf) -> None:
    adapters, version = shelf.registry.adapters, _rejected(shelf)
    _collect_after(shelf, GRACE_S - 1)
    assert is_intact(adapters.path(version), version.digest)
    _collect_after(shelf, 1)
    assert not list(shelf.registry.home.adapters.iterdir())
    assert not list(shelf.registry.home.tmp.iterdir())
    assert (adapters.by_id(version.id).state, adapters.by_id(version.id).reason) == ("rejected", "it does nothing")
    with pytest.raises(Conflict, match="support@1 is rejected and its files are removed"):
        adapters.path(version)


def test_its_files_stay_while_a_server_uses_them(shelf: Shelf) -> None:
    adapters, version = shelf.registry.adapters, _rejected(shelf)
    shelf.time.advance(10 * GRACE_S)
    adapters.collect({version.digest}, GRACE_S)
    assert is_intact(adapters.path(version), version.digest)


def test_its_files_stay_while_another_version_has_the_same_bytes(shelf: Shelf) -> None:
    adapters, rejected = shelf.registry.adapters, _rejected(shelf)
    other = shelf.ready("other", seed=1)
    assert other.digest == rejected.digest
    _collect_after(shelf, 10 * GRACE_S)
    assert is_intact(adapters.path(other), other.digest)
    adapters.retire(other.id)
    _collect_after(shelf, GRACE_S)
    assert not list(shelf.registry.home.adapters.iterdir())


def test_the_same_bytes_can_be_published_again_after_their_collection(shelf: Shelf) -> None:
    version = _rejected(shelf)
    _collect_after(shelf, GRACE_S)
    again = shelf.ready()
    assert (again.ref, again.digest) == ("support@2", version.digest)
    assert is_intact(shelf.registry.adapters.path(again), again.digest)


def test_it_can_still_be_deleted_after_their_collection(shelf: Shelf) -> None:
    version = _rejected(shelf)
    _collect_after(shelf, GRACE_S)
    shelf.registry.adapters.retire(version.id)
    _collect_after(shelf, GRACE_S)
    assert shelf.registry.adapters.by_id(version.id).state == "retired"
