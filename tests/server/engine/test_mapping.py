"""Adapter files as mapped bytes: what the file holds, whoever changes or removes it, and given back when nobody needs them."""

from __future__ import annotations

import fcntl
import gc
import mmap
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from tunedock_server.engine.mapping import file_bytes, leases

CONTENT = bytes(range(256)) * (3 * mmap.PAGESIZE // 256) + b"and a page that is not full"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """On a file system that has leases: elsewhere files are read, and there is nothing to test."""
    path = tmp_path / "adapter.safetensors"
    path.write_bytes(CONTENT)
    with path.open("rb") as stream:
        try:
            fcntl.fcntl(stream, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        except OSError:
            pytest.skip("no leases on this file system")
    return path


@pytest.fixture
def before() -> int:
    """Leases that others in this process hold."""
    gc.collect()
    return leases.num_held()


def _bytes(data: torch.Tensor) -> bytes:
    return data.numpy().tobytes()


def _wants_to_write(file: Path) -> bool:
    """Asks for the lease without waiting for it. False when there is none that would have to be given back."""
    try:
        os.close(os.open(file, os.O_RDWR | os.O_NONBLOCK))
    except BlockingIOError:
        return True
    return False


def test_the_bytes_are_those_of_the_file(file: Path) -> None:
    data = file_bytes(file)
    assert data.dtype == torch.uint8
    assert _bytes(data) == CONTENT


def test_a_lease_is_held_as_long_as_any_view_lives(file: Path, before: int) -> None:
    view = file_bytes(file)[100:104].view(torch.float32)
    gc.collect()
    assert leases.num_held() == before + 1
    assert _bytes(view) == CONTENT[100:104]
    again = view.view(torch.uint8)
    del view
    assert leases.num_held() == before + 1
    del again
    assert leases.num_held() == before
    assert not _wants_to_write(file)


def test_a_file_that_is_mapped_twice_has_two_leases(file: Path, before: int) -> None:
    first, second = file_bytes(file), file_bytes(file)
    assert leases.num_held() == before + 2
    del first
    assert leases.num_held() == before + 1
    assert _bytes(second) == CONTENT


def test_a_writer_gets_the_file_once_its_bytes_are_copied(file: Path, before: int) -> None:
    data = file_bytes(file)
    address = data.data_ptr()
    assert _wants_to_write(file)
    leases.give_back_what_is_wanted()
    assert leases.num_held() == before
    assert not _wants_to_write(file)
    file.write_bytes(b"short")
    assert data.data_ptr() == address
    assert _bytes(data) == CONTENT


def test_a_writer_that_waits_is_let_in_by_the_watching_thread(file: Path, before: int) -> None:
    data = file_bytes(file)
    with file.open("r+b") as stream:
        # Bytes that had not been copied would end the process here.
        assert leases.num_held() == before
        stream.truncate(0)
        stream.write(b"something else")
    assert _bytes(data) == CONTENT
    assert file.read_bytes() == b"something else"


def test_bytes_stay_right_for_readers_while_they_are_copied(file: Path) -> None:
    data, done, wrong = file_bytes(file), threading.Event(), []

    def read() -> None:
        while not done.is_set():
            if _bytes(data) != CONTENT:
                wrong.append(True)

    reader = threading.Thread(target=read)
    reader.start()
    assert _wants_to_write(file)
    leases.give_back_what_is_wanted()
    file.write_bytes(b"")
    done.set()
    reader.join()
    assert not wrong


def test_only_the_lease_that_is_wanted_is_given_back(file: Path, tmp_path: Path, before: int) -> None:
    other = tmp_path / "other.safetensors"
    other.write_bytes(CONTENT)
    wanted, kept = file_bytes(file), file_bytes(other)
    assert _wants_to_write(file)
    leases.give_back_what_is_wanted()
    assert leases.num_held() == before + 1
    del wanted
    assert leases.num_held() == before + 1, "what was given back is not given back twice"
    del kept
    assert leases.num_held() == before


def test_a_file_that_somebody_has_open_to_write_is_read(file: Path, before: int) -> None:
    with file.open("r+b") as stream:
        data = file_bytes(file)
        assert leases.num_held() == before
        stream.truncate(0)
    assert _bytes(data) == CONTENT


def test_a_file_that_is_removed_or_replaced_stays_readable(file: Path, tmp_path: Path, before: int) -> None:
    data = file_bytes(file)
    draft = tmp_path / "draft"
    draft.write_bytes(b"new")
    draft.replace(file)
    assert _bytes(data) == CONTENT
    file.unlink()
    assert _bytes(data) == CONTENT
    assert leases.num_held() == before + 1


def test_an_empty_file_is_an_error_and_no_lease_stays(file: Path, before: int) -> None:
    file.write_bytes(b"")
    with pytest.raises(ValueError, match="empty"):
        file_bytes(file)
    assert leases.num_held() == before
    assert not _wants_to_write(file)


def test_an_empty_file_that_is_being_written_is_the_same_error(file: Path) -> None:
    file.write_bytes(b"")
    with file.open("r+b"), pytest.raises(ValueError, match="empty"):
        file_bytes(file)


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        file_bytes(tmp_path / "gone")


# The collector may run wherever an object is made, also while this thread holds the lock of the leases.
COLLECTED_AT_ANY_MOMENT = """
import gc, sys
from pathlib import Path
from tunedock_server.engine.mapping import file_bytes, leases
for more in range(60):
    gc.set_threshold(0)
    cycle = [file_bytes(Path(sys.argv[1]))]
    cycle.append(cycle)
    del cycle
    gc.set_threshold(gc.get_count()[0] + more % 6, 1000, 1000)
    leases.give_back_what_is_wanted()
gc.collect()
assert leases.num_held() == 0
"""


def test_bytes_may_be_collected_as_garbage_at_any_moment(file: Path) -> None:
    """In a process of its own: a deadlock would stay for all other tests."""
    subprocess.run([sys.executable, "-c", COLLECTED_AT_ANY_MOMENT, str(file)], check=True, timeout=30)
