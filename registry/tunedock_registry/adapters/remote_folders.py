"""Adapter folders in an object store, with the folders on this disk as the cache.

`manifest.json` is stored last and deleted first: where it is, all files are. A fetched folder appears whole and checked
against its digest, or not at all.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from itertools import chain
from pathlib import Path

from tunedock_api.manifest import CONFIG_FILE, MANIFEST_FILE, WEIGHTS_FILE, Manifest

from ..clock import Clock
from ..durable import DurableFS
from ..layout import Home
from ..object_store import ObjectStore
from .folders import CARD_FILE, Folders, LocalFolders, missing_files
from .intake import PreparedAdapter

_ROOT = "adapters"
# The order of storing; deleting goes the other way.
_FILES = (CARD_FILE, CONFIG_FILE, WEIGHTS_FILE, MANIFEST_FILE)


@dataclass(frozen=True)
class RemoteFolders:
    store: ObjectStore
    local: LocalFolders

    def place(self, source: PreparedAdapter) -> bool:
        if not self.local.place(source):
            return False
        folder = self.local.path(source.digest)
        for name in _FILES:
            self.store.create(_key(source.digest, name), folder / name)
        return True

    def repair(self, digest: str) -> None:
        self.local.repair(digest)

    def exists(self, digest: str) -> bool:
        # All of them: somebody may have begun to store the manifest while a collector was deleting the rest.
        return all(self.store.exists(_key(digest, name)) for name in reversed(_FILES))

    def is_here(self, digest: str) -> bool:
        return self.local.exists(digest)

    def path(self, digest: str) -> Path:
        if not self.local.exists(digest):
            self.local.adopt(digest, self._files(digest))
        return self.local.path(digest)

    def remove(self, digest: str) -> None:
        for name in reversed(_FILES):
            self.store.delete(_key(digest, name))
        self.local.remove(digest)

    def stored(self) -> Iterator[tuple[str, float]]:
        """In the store, whole or not, and on this disk: the younger age counts."""
        ages: dict[str, float] = {}
        for digest, age_s in chain(self._remote(), self.local.stored()):
            ages[digest] = min(age_s, ages.get(digest, age_s))
        yield from sorted(ages.items())

    def sweep(self, older_than_s: float) -> None:
        self.local.sweep(older_than_s)

    def _remote(self) -> Iterator[tuple[str, float]]:
        for key, modified in self.store.list(_ROOT):
            folder = key.split("/")[1]
            yield folder.removeprefix("sha256-"), self.local.wall() - modified

    def _files(self, digest: str) -> Iterator[tuple[str, Iterable[bytes]]]:
        """Every file of the folder. Raises Unavailable for bytes that do not belong to `digest`."""
        manifest = self._manifest(digest)
        for name in _FILES:
            chunks: Iterable[bytes] = self._read(digest, name)
            if entry := manifest.identity.files.get(name):
                chunks = _checked(chunks, entry.sha256, digest)
            yield name, chunks

    def _manifest(self, digest: str) -> Manifest:
        try:
            manifest = Manifest.model_validate_json(b"".join(self._read(digest, MANIFEST_FILE)))
        except ValueError as error:
            raise missing_files(digest) from error
        if manifest.identity.digest() != digest:
            raise missing_files(digest)
        return manifest

    def _read(self, digest: str, name: str) -> Iterator[bytes]:
        try:
            yield from self.store.read(_key(digest, name))
        except FileNotFoundError as error:
            raise missing_files(digest) from error


def _key(digest: str, name: str) -> str:
    return f"{_ROOT}/sha256-{digest}/{name}"


def _checked(chunks: Iterable[bytes], expected: str, digest: str) -> Iterator[bytes]:
    hasher = sha256()
    for chunk in chunks:
        hasher.update(chunk)
        yield chunk
    if hasher.hexdigest() != expected:
        raise missing_files(digest)


def open_folders(home: Home, fs: DurableFS, clock: Clock, store: ObjectStore | None) -> Folders:
    """The folders of this installation: in `store`, or without one on this disk."""
    local = LocalFolders(home, fs, clock.wall)
    return local if store is None else RemoteFolders(store, local)
