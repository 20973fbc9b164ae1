from __future__ import annotations

import hashlib
import threading

import pytest
from support.registry import FakeTime
from tunedock_api.errors import BadInput, NotFound
from tunedock_registry.records import Attempt, PartRecord, UploadRecord
from tunedock_registry.registry import Registry
from tunedock_registry.uploads import MAX_PART_BYTES, MAX_UPLOAD_BYTES

CONTENT = b"first line\nsecond line\n"


def start(registry: Registry, size: int = len(CONTENT), project: str = "default") -> UploadRecord:
    return registry.uploads.create(project, "data.jsonl", "fine-tune", size, "application/jsonl")


def parts(registry: Registry, upload: UploadRecord, size: int = 8) -> list[PartRecord]:
    pieces = [CONTENT[at : at + size] for at in range(0, len(CONTENT), size)]
    return [registry.uploads.add_part(upload.project, upload.id, [piece]) for piece in pieces]


def test_parts_become_one_file_in_the_order_of_complete(registry: Registry) -> None:
    upload = start(registry)
    assert (upload.status, upload.file, upload.expires_at) == ("pending", None, upload.created_at + 3600)
    first, *rest = parts(registry, upload)
    assert (first.upload_id, first.size_bytes) == (upload.id, 8)
    md5 = hashlib.md5(CONTENT, usedforsecurity=False).hexdigest()
    done = registry.uploads.complete("default", upload.id, [first.id, *(part.id for part in rest)], md5.upper())
    assert done.status == "completed"
    assert done.file is not None
    assert registry.files.open("default", done.file.id).read() == CONTENT
    assert (done.file.filename, done.file.purpose, done.file.status) == ("data.jsonl", "fine-tune", "uploaded")
    assert registry.uploads.get("default", upload.id) == done


def test_parts_sent_in_parallel_and_out_of_order_are_put_right(registry: Registry) -> None:
    upload = start(registry, 8)
    made: dict[int, str] = {}

    def send(number: int) -> None:
        made[number] = registry.uploads.add_part("default", upload.id, [bytes([65 + number])]).id

    threads = [threading.Thread(target=send, args=(number,)) for number in reversed(range(8))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    done = registry.uploads.complete("default", upload.id, [made[number] for number in range(8)])
    assert done.file is not None
    assert registry.files.open("default", done.file.id).read() == b"ABCDEFGH"


def test_complete_checks_sizes_digest_and_ownership_and_can_be_tried_again(registry: Registry) -> None:
    upload, other = start(registry), start(registry)
    ids = [part.id for part in parts(registry, upload)]
    foreign = [part.id for part in parts(registry, other)]
    wrong = {
        "22 bytes": ids[:-1],
        "does not belong": [*ids[:-1], foreign[-1]],
        "twice": [*ids, ids[0]],
    }
    for text, part_ids in wrong.items():
        with pytest.raises(BadInput, match="together" if text == "22 bytes" else text) as caught:
            registry.uploads.complete("default", upload.id, part_ids)
        assert caught.value.param == "part_ids"
    with pytest.raises(BadInput, match="md5") as caught:
        registry.uploads.complete("default", upload.id, ids, "0" * 32)
    assert caught.value.param == "md5"
    assert registry.uploads.complete("default", upload.id, ids).status == "completed"


def test_completing_again_returns_the_same_file(registry: Registry) -> None:
    upload = start(registry)
    ids = [part.id for part in parts(registry, upload)]
    assert registry.uploads.complete("default", upload.id, ids) == registry.uploads.complete("default", upload.id, ids)
    assert len(registry.files.list("default").items) == 1
    with pytest.raises(BadInput, match="is completed"):
        registry.uploads.complete("default", upload.id, ids[::-1])


def test_two_completes_at_once_make_one_file(registry: Registry) -> None:
    upload = start(registry)
    ids = [part.id for part in parts(registry, upload)]
    done: list[UploadRecord] = []
    threads = [
        threading.Thread(target=lambda: done.append(registry.uploads.complete("default", upload.id, ids)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(done) == 4
    assert all(upload == done[0] for upload in done)


def test_no_part_is_taken_when_the_upload_is_over(registry: Registry, time: FakeTime) -> None:
    cancelled, completed, expired = start(registry), start(registry), start(registry)
    assert registry.uploads.cancel("default", cancelled.id).status == "cancelled"
    assert registry.uploads.cancel("default", cancelled.id).status == "cancelled"
    registry.uploads.complete("default", completed.id, [part.id for part in parts(registry, completed)])
    time.advance(3600)
    for upload, status in ((cancelled, "cancelled"), (completed, "completed"), (expired, "expired")):
        assert registry.uploads.get("default", upload.id).status == status
        with pytest.raises(BadInput, match=f"is {status}") as caught:
            registry.uploads.add_part("default", upload.id, [b"x"])
        assert caught.value.kind.http_status == 400
        with pytest.raises(BadInput):
            registry.uploads.complete("default", upload.id, [])
    with pytest.raises(BadInput):
        registry.uploads.cancel("default", completed.id)


def test_the_file_of_an_upload_expires_as_asked(registry: Registry) -> None:
    upload = registry.uploads.create("default", "x", "fine-tune", len(CONTENT), "text/plain", 7200)
    done = registry.uploads.complete("default", upload.id, [part.id for part in parts(registry, upload)])
    assert done.file is not None
    assert done.file.expires_at == done.file.created_at + 7200


def test_repeated_calls_return_the_first_result(registry: Registry) -> None:
    retry, digest = Attempt(body_sha256="b" * 64, retry=True), Attempt(body_sha256="b" * 64)
    args = ("default", "x", "fine-tune", 4, "text/plain")
    upload = registry.uploads.create(*args, attempt=digest)
    assert registry.uploads.create(*args, attempt=retry).id == upload.id
    part = registry.uploads.add_part("default", upload.id, [b"aa"])
    assert registry.uploads.add_part("default", upload.id, [b"aa"], attempt=retry).id == part.id
    assert registry.uploads.add_part("default", upload.id, [b"ab"], attempt=retry).id != part.id
    assert registry.uploads.add_part("default", upload.id, [b"aa"]).id != part.id


def test_sizes_are_bounded(registry: Registry) -> None:
    for size in (0, -1, MAX_UPLOAD_BYTES + 1):
        with pytest.raises(BadInput) as caught:
            start(registry, size)
        assert caught.value.param == "bytes"
    upload = start(registry, 10)
    with pytest.raises(BadInput) as caught:
        registry.uploads.add_part("default", upload.id, (b"x" * 2**20 for _ in range(65)))
    assert caught.value.code == "payload_too_large"
    assert MAX_PART_BYTES == 67_108_864


def test_another_projects_upload_is_as_absent_as_a_missing_one(registry: Registry) -> None:
    upload = start(registry, project="mine")
    for project, upload_id in (("other", upload.id), ("mine", "upload_missing")):
        for call in (
            lambda p, u: registry.uploads.get(p, u),
            lambda p, u: registry.uploads.add_part(p, u, [b"x"]),
            lambda p, u: registry.uploads.complete(p, u, []),
            lambda p, u: registry.uploads.cancel(p, u),
        ):
            with pytest.raises(NotFound, match=f"No such Upload object: {upload_id}"):
                call(project, upload_id)
