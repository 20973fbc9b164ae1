"""Streams bytes into a private file, hashes them on the way and makes them durable: the first step of storing."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from tunedock_api.errors import BadInput

from .durable import DurableFS, typed_io
from .ids import new_id


@dataclass(frozen=True)
class Staged:
    """Durable, complete, and not yet visible to anybody else. Digests are hex."""

    path: Path
    sha256: str
    md5: str
    size_bytes: int


@dataclass(frozen=True)
class Staging:
    """`folder` is on the same file system as the local blobs, so that a staged file can be linked there."""

    fs: DurableFS
    folder: Path

    @contextmanager
    def stage(self, chunks: Iterable[bytes], max_bytes: int | None = None) -> Iterator[Staged]:
        """Memory stays flat; the private file is gone at the end of the `with`.

        Raises BadInput (`payload_too_large`) beyond `max_bytes` and Unavailable when the disk is full or failing;
        what `chunks` raises passes through.
        """
        path = self.folder / new_id("blob-")
        with typed_io():
            file = self.fs.create(path)
        try:
            with file:
                staged = self._fill(path, file, chunks, max_bytes)
            yield staged
        finally:
            # One that cannot be removed now is garbage for the collector, not the caller's failure.
            with suppress(OSError):
                self.fs.unlink(path)

    def _fill(self, path: Path, file: BinaryIO, chunks: Iterable[bytes], max_bytes: int | None) -> Staged:
        sha256, md5, size = hashlib.sha256(), hashlib.md5(usedforsecurity=False), 0
        for chunk in chunks:
            size += len(chunk)
            if max_bytes is not None and size > max_bytes:
                raise BadInput(f"The content is larger than the limit of {max_bytes} bytes.", "payload_too_large")
            sha256.update(chunk)
            md5.update(chunk)
            with typed_io():
                self.fs.write(file, chunk)
        with typed_io():
            self.fs.sync_file(file)
        return Staged(path, sha256.hexdigest(), md5.hexdigest(), size)
