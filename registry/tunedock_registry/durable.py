"""Every durable file operation of the registry, one method each, so that a test can fail or crash at any of them."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from tunedock_api.errors import Unavailable

_FULL = (errno.ENOSPC, errno.EDQUOT)


def sync(path: Path) -> None:
    """What was written to a file, or the names in a folder, survives a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_file(path: Path, data: bytes) -> None:
    """Written under another name first: the file has its old contents or the new ones, whatever happens."""
    draft = path.with_name(path.name + ".tmp")
    draft.write_bytes(data)
    sync(draft)
    draft.replace(path)
    sync(path.parent)


class DurableFS:
    """Plain calls; each either happened or raised OSError. What is durable when, is up to the caller's order:
    data (`sync_file`) before its name (`link` or `rename`), the name made durable by `sync_dir` of its folder."""

    def make_dir(self, path: Path) -> None:
        """With its parents; fine when it is there. A new folder's name is durable after `sync_dir` of its parent."""
        path.mkdir(parents=True, exist_ok=True, mode=0o700)

    def create(self, path: Path) -> BinaryIO:
        """A new file, unbuffered, readable by the owner only. Raises FileExistsError."""
        return open(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600), "r+b", buffering=0)

    def write(self, file: BinaryIO, data: bytes) -> None:
        """All of `data`: an unbuffered write may take less than it was given."""
        view = memoryview(data)
        while view:
            view = view[file.write(view) :]

    def sync_file(self, file: BinaryIO) -> None:
        os.fsync(file.fileno())

    def sync_dir(self, path: Path) -> None:
        sync(path)

    def link(self, source: Path, target: Path) -> None:
        """Atomic create: raises FileExistsError and leaves the existing file alone."""
        os.link(source, target)

    def rename(self, source: Path, target: Path) -> None:
        """Atomic. A folder replaces only an empty folder (OSError otherwise), a file replaces a file."""
        source.rename(target)

    def unlink(self, path: Path) -> None:
        path.unlink(missing_ok=True)

    def remove_tree(self, path: Path) -> None:
        if path.exists():
            shutil.rmtree(path)

    def chmod(self, path: Path, mode: int) -> None:
        path.chmod(mode)


@contextmanager
def typed_io() -> Iterator[None]:
    """Turns a full disk or a failing one into Unavailable (`storage_full`, `storage_unavailable`)."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise Unavailable(
                "The registry's disk is full: nothing was written. Free some space.", "storage_full"
            ) from error
        raise Unavailable(
            f"The registry's files cannot be read or written ({os.strerror(error.errno or errno.EIO)}).",
            "storage_unavailable",
        ) from error
