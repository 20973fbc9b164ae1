"""The blob store: bytes under their sha256, written once, never changed.

Storing takes three steps, so that a crash leaves garbage to collect and never half a blob: stage (`staging.py`), note
the digest in the `blobs` table, then `add`, which gives the bytes their name.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, Protocol

from .durable import DurableFS, typed_io
from .layout import Home
from .staging import Staged


class Blobs(Protocol):
    """Where blobs are. A digest is 64 hex characters; all calls raise Unavailable when the store fails."""

    def add(self, staged: Staged) -> None:
        """Makes it visible. Fine when the same bytes are there already."""

    def path(self, sha256: str) -> Path:
        """A local file with these bytes, fetched and checked first where the store is elsewhere."""

    def open(self, sha256: str) -> BinaryIO:
        """The bytes, from the start."""

    def delete(self, sha256: str) -> None:
        """Fine when it is not there."""


class LocalBlobs:
    """`sha256/<2>/<64>` under `root`."""

    def __init__(self, root: Path, fs: DurableFS) -> None:
        self._root = root
        self._fs = fs

    def add(self, staged: Staged) -> None:
        target = self.path(staged.sha256)
        folder = target.parent
        with typed_io():
            self._fs.make_dir(folder)
            # Somebody may have stored the same bytes; their link may not be durable yet, so sync in any case.
            with suppress(FileExistsError):
                self._fs.link(staged.path, target)
            for parent in (folder, folder.parent, folder.parent.parent):
                self._fs.sync_dir(parent)

    def path(self, sha256: str) -> Path:
        return self._root / "sha256" / sha256[:2] / sha256

    def open(self, sha256: str) -> BinaryIO:
        with typed_io():
            return self.path(sha256).open("rb")

    def delete(self, sha256: str) -> None:
        with typed_io():
            self._fs.unlink(self.path(sha256))


def open_blobs(home: Home, fs: DurableFS) -> Blobs:
    """The store of this installation."""
    return LocalBlobs(home.blobs, fs)
