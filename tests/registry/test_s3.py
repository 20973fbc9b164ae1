"""Files and adapters in S3; what must hold for any store is tested in test_files.py and adapters/test_store.py."""

from __future__ import annotations

import os
import threading
import time as real_time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.registry import FakeTime, add_file
from support.s3 import S3, running_s3
from support.shelf import Shelf
from tunedock_api.errors import BadInput, Unavailable
from tunedock_registry.adapters.folders import is_intact
from tunedock_registry.clock import Clock
from tunedock_registry.collector import GRACE_S
from tunedock_registry.layout import Home
from tunedock_registry.object_store import ObjectStore, open_store
from tunedock_registry.registry import Registry


@pytest.fixture(scope="module")
def s3() -> Iterator[S3]:
    with running_s3() as server, pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment.items():
            patch.setenv(name, value)
        yield server


@pytest.fixture
def url(s3: S3) -> str:
    return s3.fresh_url()


@pytest.fixture
def store(url: str) -> ObjectStore:
    return open_store(url)


def open_on(home: Path, url: str, database: Path, time: FakeTime | None = None) -> Registry:
    """A machine of its own (`home`) on the shared store and database."""
    clock = time.clock() if time else Clock()
    return Registry.open(Home(home), database_url=f"sqlite:///{database}", store_url=url, clock=clock)


@pytest.fixture
def here(home_root: Path, url: str) -> Iterator[Registry]:
    home_root.mkdir()
    registry = open_on(home_root / "here", url, home_root / "shared.db")
    yield registry
    registry.close()


@pytest.fixture
def there(home_root: Path, url: str, here: Registry) -> Iterator[Registry]:
    """A second machine."""
    registry = open_on(home_root / "there", url, home_root / "shared.db")
    yield registry
    registry.close()


def test_an_object_is_made_once_and_never_overwritten(store: ObjectStore, tmp_path: Path) -> None:
    for content in (b"first", b"second"):
        (tmp_path / "file").write_bytes(content)
        assert store.create("a/b", tmp_path / "file") is (content == b"first")
    assert b"".join(store.read("a/b")) == b"first"
    assert store.exists("a/b")
    [(key, modified)] = store.list("a")
    assert key == "a/b"
    assert abs(modified - real_time.time()) < 300
    store.delete("a/b")
    store.delete("a/b")
    assert not store.exists("a/b")
    assert list(store.list("a")) == []


def test_of_many_that_create_the_same_object_one_wins(store: ObjectStore, tmp_path: Path) -> None:
    outcomes: list[tuple[bool, bytes]] = []

    def create(number: int) -> None:
        path = tmp_path / f"{number}"
        path.write_bytes(b"%d" % number)
        outcomes.append((store.create("race", path), path.read_bytes()))

    threads = [threading.Thread(target=create, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    [winner] = [content for won, content in outcomes if won]
    assert len(outcomes) == 16
    assert b"".join(store.read("race")) == winner


def test_an_object_larger_than_one_part_arrives_whole(store: ObjectStore, tmp_path: Path) -> None:
    content = os.urandom(20 * 2**20)
    (tmp_path / "large").write_bytes(content)
    assert store.create("large", tmp_path / "large")
    assert not store.create("large", tmp_path / "large")
    assert b"".join(store.read("large")) == content


def test_a_file_stored_here_is_read_there(here: Registry, there: Registry) -> None:
    record = add_file(here)
    assert there.files.open("default", record.id).read() == b"{}\n"
    assert there.files.path(record).is_relative_to(there.home.root)
    assert add_file(there).sha256 == record.sha256


def test_a_fetched_file_that_does_not_match_its_digest_is_not_used(
    here: Registry, there: Registry, store: ObjectStore, tmp_path: Path
) -> None:
    record = add_file(here)
    [(key, _)] = store.list("blobs")
    store.delete(key)
    with pytest.raises(Unavailable, match="missing"):
        there.files.path(record)
    (tmp_path / "other").write_bytes(b"other bytes")
    store.create(key, tmp_path / "other")
    with pytest.raises(Unavailable, match="does not match its digest"):
        there.files.path(record)
    assert list(there.home.tmp.iterdir()) == []
    assert here.files.open("default", record.id).read() == b"{}\n"


def test_local_copies_that_nobody_used_lately_are_given_up_and_fetched_again(here: Registry) -> None:
    record = add_file(here)
    path = here.files.path(record)
    here.collector.collect()
    assert path.exists()
    os.utime(path, (real_time.time() - GRACE_S - 1,) * 2)
    here.collector.collect()
    assert not path.exists()
    assert here.files.open("default", record.id).read() == b"{}\n"


def test_collected_files_leave_the_store(home_root: Path, url: str, store: ObjectStore) -> None:
    home_root.mkdir()
    time = FakeTime(wall_s=real_time.time())
    registry = open_on(home_root / "here", url, home_root / "shared.db", time)
    registry.files.delete("default", add_file(registry).id)
    time.advance(GRACE_S + 1)
    assert registry.collector.collect().blobs == 1
    assert list(store.list("blobs")) == []
    registry.close()


def test_an_adapter_published_here_is_served_there_until_it_is_collected(
    here: Registry, there: Registry, store: ObjectStore, tmp_path: Path
) -> None:
    shelf = Shelf.around(here, tmp_path)
    version = shelf.ready()
    path = there.adapters.path(version)
    assert path.is_relative_to(there.home.root)
    assert is_intact(path, version.digest)
    assert {file.name for file in path.iterdir()} == {file.name for file in here.adapters.path(version).iterdir()}
    here.adapters.retire(version.id)
    here.adapters.collect(grace_s=-300)
    there.adapters.collect(grace_s=-300)
    assert list(store.list("adapters")) == []
    assert not path.exists()


def test_a_damaged_adapter_in_the_store_is_refused_and_leaves_nothing(
    here: Registry, there: Registry, store: ObjectStore, tmp_path: Path
) -> None:
    version = Shelf.around(here, tmp_path).ready()
    key = f"adapters/sha256-{version.digest}/adapter_model.safetensors"
    content = bytearray(b"".join(store.read(key)))
    content[-1] ^= 1
    (tmp_path / "damaged").write_bytes(content)
    store.delete(key)
    store.create(key, tmp_path / "damaged")
    with pytest.raises(Unavailable) as caught:
        there.adapters.path(version)
    assert caught.value.code == "adapter_unavailable"
    assert not there.home.adapter_dir(version.digest).exists()
    assert is_intact(here.adapters.path(version), version.digest)


def test_a_store_that_is_down_is_a_typed_error_and_nothing_is_torn(
    home_root: Path, s3: S3, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    home_root.mkdir()
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    registry = open_on(home_root / "here", url, home_root / "shared.db")
    with pytest.raises(Unavailable) as caught:
        add_file(registry)
    assert caught.value.code == "storage_unavailable"
    assert registry.files.list("default").items == []
    assert list(registry.home.tmp.iterdir()) == []
    registry.close()


def test_a_bucket_that_is_not_there_is_a_typed_error(s3: S3, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(Unavailable):
        open_store("s3://no-such-bucket/x").create("a", tmp_path / "file")


def test_an_unknown_kind_of_store_is_refused_with_what_to_write() -> None:
    with pytest.raises(BadInput, match="s3://BUCKET/PREFIX"):
        open_store("ftpx://host/path")


def test_any_other_file_system_of_fsspec_works_too(tmp_path: Path) -> None:
    store = open_store(f"file://{tmp_path}/store")
    (tmp_path / "store" / "a").mkdir(parents=True)
    (tmp_path / "file").write_bytes(b"x")
    assert store.create("a/b", tmp_path / "file")
    assert not store.create("a/b", tmp_path / "file")
    assert [key for key, _ in store.list("a")] == ["a/b"]
