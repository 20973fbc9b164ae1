"""The blob store: bytes under their sha256, written once, never changed.

Storing takes three steps, so that a crash leaves garbage to collect and never half a blob: stage (`staging.py`), note
the digest in the `blobs` table, then `add`, which gives the bytes their name.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, Protocol

from tunedock_api.errors import Unavailable

from .durable import DurableFS, typed_io
from .layout import Home
from .object_store import ObjectStore
from .staging import Staged, Staging


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

    def trim(self, before: float) -> None:
        """Gives up local copies that were last used before `before` (Unix seconds) and can be fetched again."""


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

    def trim(self, before: float) -> None:
        return  # Nothing here is a copy.

    def remove_unused(self, before: float) -> None:
        """Removes every blob that was last touched before `before`, where another place has them."""
        with typed_io():
            for path in self._root.glob("sha256/*/*"):
                if path.stat().st_mtime < before:
                    self._fs.unlink(path)


class RemoteBlobs:
    """Blobs in an object store, below `blobs/`; a local copy of those that were used lately is the cache."""

    def __init__(self, store: ObjectStore, cache: LocalBlobs, staging: Staging) -> None:
        self._store = store
        self._cache = cache
        self._staging = staging

    def add(self, staged: Staged) -> None:
        self._store.create(_key(staged.sha256), staged.path)
        self._cache.add(staged)

    def path(self, sha256: str) -> Path:
        path = self._cache.path(sha256)
        if not path.exists():
            self._fetch(sha256)
        with typed_io(), suppress(FileNotFoundError):
            os.utime(path)  # `trim` goes by the last use
        return path

    def open(self, sha256: str) -> BinaryIO:
        self.path(sha256)
        return self._cache.open(sha256)

    def delete(self, sha256: str) -> None:
        self._store.delete(_key(sha256))
        self._cache.delete(sha256)

    def trim(self, before: float) -> None:
        self._cache.remove_unused(before)

    def _fetch(self, sha256: str) -> None:
        try:
            with self._staging.stage(self._store.read(_key(sha256))) as staged:
                if staged.sha256 != sha256:
                    raise Unavailable(
                        "A stored object does not match its digest: it is not used.", "storage_unavailable"
                    )
                self._cache.add(staged)
        except FileNotFoundError as error:
            raise Unavailable("A stored object is missing from the object store.", "storage_unavailable") from error


def _key(sha256: str) -> str:
    return f"blobs/sha256/{sha256[:2]}/{sha256}"


def open_blobs(home: Home, fs: DurableFS, staging: Staging, store: ObjectStore | None = None) -> Blobs:
    """The blobs of this installation: in `store`, or without one on this disk."""
    local = LocalBlobs(home.blobs, fs)
    return local if store is None else RemoteBlobs(store, local, staging)
