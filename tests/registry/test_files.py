from __future__ import annotations

import hashlib
import os
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.faulty_fs import DISK_FULL, IO_ERROR, Crash, FaultyFS, every_step
from support.registry import FakeTime, add_file, open_registry
from tunedock_api.errors import BadInput, Conflict, NotFound, Unavailable
from tunedock_registry.files import MAX_FILE_BYTES
from tunedock_registry.records import Attempt
from tunedock_registry.registry import Registry


def test_a_file_is_stored_under_its_digest_and_read_back(registry: Registry) -> None:
    record = registry.files.create("default", "data.jsonl", "fine-tune", [b"one\n", b"two\n"])
    assert record.sha256 == hashlib.sha256(b"one\ntwo\n").hexdigest()
    assert (record.size_bytes, record.status, record.expires_at) == (8, "uploaded", None)
    assert record.id.startswith("file-")
    assert registry.files.get("default", record.id) == record
    assert registry.files.open("default", record.id).read() == b"one\ntwo\n"
    assert registry.files.path(record).read_bytes() == b"one\ntwo\n"


def test_equal_contents_share_one_blob_and_stay_two_files(registry: Registry) -> None:
    first, second = add_file(registry), add_file(registry)
    assert first.id != second.id
    assert registry.files.path(first) == registry.files.path(second)
    registry.files.delete("default", first.id)
    assert registry.files.open("default", second.id).read() == b"{}\n"


def test_an_empty_file_is_a_file(registry: Registry) -> None:
    assert registry.files.create("default", "empty", "fine-tune", []).size_bytes == 0


def test_another_projects_file_is_as_absent_as_a_missing_one(registry: Registry) -> None:
    record = add_file(registry, "mine")
    for project, file_id in (("other", record.id), ("mine", "file-missing")):
        with pytest.raises(NotFound, match=f"No such File object: {file_id}"):
            registry.files.get(project, file_id)
        with pytest.raises(NotFound):
            registry.files.delete(project, file_id)
        with pytest.raises(NotFound):
            registry.files.open(project, file_id)


def test_lists_walk_every_file_once_in_both_orders(registry: Registry) -> None:
    ids = [add_file(registry).id for _ in range(5)]
    add_file(registry, "other")
    assert _walk(registry, "asc") == ids
    assert _walk(registry, "desc") == ids[::-1]


def _walk(registry: Registry, order: str) -> list[str]:
    seen: list[str] = []
    while True:
        page = registry.files.list("default", seen[-1] if seen else None, 2, order)  # type: ignore[arg-type]
        seen += [item.id for item in page.items]
        if not page.has_more:
            return seen


def test_a_list_can_be_narrowed_to_a_purpose(registry: Registry) -> None:
    add_file(registry)
    result = registry.files.create("default", "results.csv", "fine-tune-results", [b"step\n"])
    assert [item.id for item in registry.files.list("default", purpose="fine-tune-results").items] == [result.id]


def test_an_unknown_cursor_is_refused(registry: Registry) -> None:
    other = add_file(registry, "other")
    for cursor in ("file-missing", other.id):
        with pytest.raises(BadInput) as caught:
            registry.files.list("default", after=cursor)
        assert caught.value.param == "after"


def test_the_result_of_validation_is_kept(registry: Registry) -> None:
    record = add_file(registry)
    assert [item.id for item in registry.files.unfinished()] == [record.id]
    registry.files.set_result(record.id, "error", "Line 3 is not JSON", {"errors": [{"line": 3}]})
    got = registry.files.get("default", record.id)
    assert (got.status, got.status_details, got.report) == ("error", "Line 3 is not JSON", {"errors": [{"line": 3}]})
    assert registry.files.unfinished() == []


def test_a_file_that_is_deleted_during_validation_stays_deleted(registry: Registry) -> None:
    record = add_file(registry)
    registry.files.delete("default", record.id)
    with pytest.raises(NotFound):
        registry.files.set_result(record.id, "processed", None, {})


def test_a_file_is_gone_when_its_time_is_up(registry: Registry, time: FakeTime) -> None:
    record = registry.files.create("default", "x", "fine-tune", [b"x"], expires_after_s=3600)
    assert record.expires_at == record.created_at + 3600
    time.advance(3599)
    registry.files.get("default", record.id)
    time.advance(1)
    with pytest.raises(NotFound):
        registry.files.get("default", record.id)
    assert registry.files.list("default").items == []


def test_a_file_over_the_limit_is_refused_and_leaves_nothing(registry: Registry) -> None:
    with pytest.raises(BadInput) as caught:
        registry.files.create("default", "x", "fine-tune", iter([b"a" * 60, b"b" * 60]), max_bytes=100)
    assert caught.value.code == "payload_too_large"
    assert registry.files.list("default").items == []
    assert _leftovers(registry) == []
    assert MAX_FILE_BYTES == 512 * 2**20


def test_a_client_that_breaks_off_leaves_nothing(registry: Registry) -> None:
    def broken() -> Iterator[bytes]:
        yield b"half"
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        registry.files.create("default", "x", "fine-tune", broken())
    assert registry.files.list("default").items == []
    assert _leftovers(registry) == []


def _leftovers(registry: Registry) -> list[str]:
    return os.listdir(registry.home.tmp)


def test_memory_stays_flat_for_a_large_file(registry: Registry) -> None:
    chunk = b"x" * 2**20
    tracemalloc.start()
    registry.files.create("default", "large", "fine-tune", (chunk for _ in range(64)))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4 * 2**20


def test_a_repeated_create_returns_the_first_file(registry: Registry, time: FakeTime) -> None:
    first = add_file(registry)
    retry = Attempt(retry=True)
    args = ("default", "data.jsonl", "fine-tune", [b"{}\n"])
    time.advance(59)
    assert registry.files.create(*args, attempt=retry).id == first.id
    assert registry.files.create(*args).id != first.id
    time.advance(61)
    assert registry.files.create(*args, attempt=retry).id != first.id


def test_a_retry_with_other_content_or_name_is_another_file(registry: Registry) -> None:
    first = add_file(registry)
    retry = Attempt(retry=True)
    assert registry.files.create("default", "data.jsonl", "fine-tune", [b"[]\n"], attempt=retry).id != first.id
    assert registry.files.create("default", "other.jsonl", "fine-tune", [b"{}\n"], attempt=retry).id != first.id


def test_an_idempotency_key_stands_for_one_file(registry: Registry) -> None:
    key = Attempt(key="abc")
    first = registry.files.create("default", "a", "fine-tune", [b"1"], attempt=key)
    assert registry.files.create("default", "a", "fine-tune", [b"1"], attempt=key).id == first.id
    assert registry.files.create("other", "a", "fine-tune", [b"1"], attempt=key).id != first.id
    with pytest.raises(Conflict) as caught:
        registry.files.create("default", "a", "fine-tune", [b"2"], attempt=key)
    assert caught.value.code == "idempotency_conflict"


def _steps(home_root: Path) -> int:
    return every_step(lambda fs: add_file(open_registry(home_root / "count", fs=fs)))


@pytest.mark.parametrize(("error", "code"), [(DISK_FULL, "storage_full"), (IO_ERROR, "storage_unavailable")])
def test_a_failing_disk_is_a_typed_error_at_every_step(home_root: Path, error: int, code: str) -> None:
    steps = _steps(home_root)
    assert steps >= 8
    for step in range(1, steps):
        registry = open_registry(home_root / f"{step}", fs=FaultyFS(step, error))
        with pytest.raises(Unavailable) as caught:
            add_file(registry)
        assert caught.value.code == code
        assert registry.files.list("default").items == []
        assert _leftovers(registry) == []
        assert add_file(registry).size_bytes == 3


def test_a_private_file_that_cannot_be_removed_is_not_the_callers_failure(home_root: Path) -> None:
    fs = FaultyFS(_steps(home_root), IO_ERROR)
    registry = open_registry(home_root / "home", fs=fs)
    assert add_file(registry).size_bytes == 3
    assert fs.calls[-1] == "unlink"


def test_a_crash_at_any_step_leaves_the_file_whole_or_absent(home_root: Path) -> None:
    for step in range(1, _steps(home_root) + 1):
        root = home_root / f"{step}"
        with pytest.raises(Crash):
            add_file(open_registry(root, fs=FaultyFS(step)))
        registry = open_registry(root)
        for record in registry.files.list("default").items:
            assert registry.files.open("default", record.id).read() == b"{}\n"
        again = add_file(registry)
        assert registry.files.open("default", again.id).read() == b"{}\n"
