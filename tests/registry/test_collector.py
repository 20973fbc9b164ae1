from __future__ import annotations

import os
import threading

from support.registry import FakeTime, add_file, claimed_job
from tunedock_registry.collector import GRACE_S
from tunedock_registry.registry import Registry


def test_a_blob_outlives_its_last_file_by_the_grace_time(registry: Registry, time: FakeTime) -> None:
    first, second = add_file(registry), add_file(registry)
    path = registry.files.path(first)
    registry.files.delete("default", first.id)
    time.advance(GRACE_S + 1)
    assert registry.collector.collect().blobs == 0
    registry.files.delete("default", second.id)
    collected = registry.collector.collect()
    assert (collected.blobs, collected.size_bytes) == (1, 3)
    assert not path.exists()
    assert registry.collector.collect().blobs == 0


def test_fresh_blobs_are_left_alone(registry: Registry, time: FakeTime) -> None:
    record = add_file(registry)
    registry.files.delete("default", record.id)
    time.advance(GRACE_S)
    assert registry.collector.collect().blobs == 0
    assert registry.files.path(record).exists()


def test_storing_the_same_bytes_again_renews_the_grace(registry: Registry, time: FakeTime) -> None:
    registry.files.delete("default", add_file(registry).id)
    time.advance(GRACE_S)
    registry.files.delete("default", add_file(registry).id)
    time.advance(1)
    assert registry.collector.collect().blobs == 0


def test_expired_files_and_uploads_go_with_their_bytes(registry: Registry, time: FakeTime) -> None:
    registry.files.create("default", "x", "fine-tune", [b"x"], expires_after_s=3600)
    upload = registry.uploads.create("default", "x", "fine-tune", 9, "text/plain")
    registry.uploads.add_part("default", upload.id, [b"part"])
    time.advance(GRACE_S + 1)
    assert registry.collector.collect().blobs == 2
    assert registry.uploads.get("default", upload.id).status == "expired"


def test_parts_go_when_the_upload_is_complete_and_the_file_stays(registry: Registry, time: FakeTime) -> None:
    upload = registry.uploads.create("default", "x", "fine-tune", 2, "text/plain")
    ids = [registry.uploads.add_part("default", upload.id, [byte]).id for byte in (b"a", b"b")]
    done = registry.uploads.complete("default", upload.id, ids)
    time.advance(GRACE_S + 1)
    assert registry.collector.collect().blobs == 2
    assert done.file is not None
    assert registry.files.open("default", done.file.id).read() == b"ab"


def test_leftovers_of_dead_processes_are_removed_and_those_of_living_ones_are_not(
    registry: Registry, time: FakeTime
) -> None:
    old, new = registry.home.tmp / "blob-old", registry.home.tmp / "blob-new"
    for path, age_s in ((old, GRACE_S + 1), (new, 10)):
        path.write_bytes(b"half")
        os.utime(path, (time.wall_s - age_s,) * 2)
    assert registry.collector.collect().leftovers == 1
    assert (old.exists(), new.exists()) == (False, True)


def test_collecting_while_the_same_bytes_are_stored_never_loses_them(registry: Registry, time: FakeTime) -> None:
    """The bytes of the round before are unused and old enough just when the next round stores them again."""
    stop = threading.Event()
    failures: list[BaseException] = []

    def collect() -> None:
        while not stop.is_set():
            try:
                registry.collector.collect(grace_s=0)
            except BaseException as error:
                failures.append(error)
                return

    thread = threading.Thread(target=collect)
    thread.start()
    for _ in range(30):
        record = add_file(registry)
        assert registry.files.open("default", record.id).read() == b"{}\n"
        registry.files.delete("default", record.id)
        time.advance(1)
    stop.set()
    thread.join()
    assert failures == []


def test_jobs_and_their_events_stay(registry: Registry, time: FakeTime) -> None:
    claim = claimed_job(registry)
    time.advance(100 * GRACE_S)
    registry.collector.collect()
    assert registry.jobs.find(claim.job.id).status == "running"


def test_a_private_file_that_goes_away_meanwhile_is_no_failure(registry: Registry) -> None:
    # A link to nowhere is listed, and gone for whoever looks closer, as a file that is renamed in between.
    (registry.home.tmp / "blob-gone").symlink_to("nowhere")
    assert registry.collector.collect().leftovers == 0
