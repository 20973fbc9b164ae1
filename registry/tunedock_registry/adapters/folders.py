"""The adapter folders: `adapters/sha256-<digest>/`, exactly a PEFT folder and `manifest.json`, never changed.

A folder appears whole or not at all: files are written and synced in `tmp/`, then the folder is renamed into place. It
goes the same way: renamed into `tmp/`, then deleted there. Whatever a crash leaves in `tmp/` is garbage.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Protocol

from tunedock_api.errors import Rejected, TuneDockError, Unavailable
from tunedock_api.manifest import CONFIG_FILE, MANIFEST_FILE, WEIGHTS_FILE, FileEntry, Identity, Manifest

from ..durable import DurableFS, typed_io
from ..ids import new_id
from ..layout import Home
from .card import model_card
from .intake import PreparedAdapter, manifest_bytes, open_regular

CARD_FILE = "README.md"
PUBLIC_FILES = (CONFIG_FILE, WEIGHTS_FILE, MANIFEST_FILE, CARD_FILE)
_CHUNK = 1 << 20
_STAGING, _TRASH = "publish-", "trash-"


class Folders(Protocol):
    """Where the files of versions are. All calls raise Unavailable when the store fails."""

    def place(self, source: PreparedAdapter) -> bool:
        """Makes the folder durable; fine when it is there. False when what is there is damaged: it needs `repair`.

        Raises Rejected when the source changed since `prepare`.
        """

    def repair(self, digest: str) -> None:
        """Takes a damaged folder away. Under the registry's write lock alone: it may have become another, good one."""

    def exists(self, digest: str) -> bool: ...

    def is_here(self, digest: str) -> bool:
        """Whether `path` needs no fetching."""

    def path(self, digest: str) -> Path:
        """A local folder, fetched first where the store is elsewhere. Raises Unavailable (`adapter_unavailable`)."""

    def remove(self, digest: str) -> None:
        """Takes the folder out of sight; fine when it is not there."""

    def stored(self) -> Iterator[tuple[str, float]]:
        """(digest, age in seconds) of every folder."""

    def sweep(self, older_than_s: float) -> None:
        """Deletes what is out of sight and what crashes have left."""


@dataclass(frozen=True)
class LocalFolders:
    """Folders on this machine's disk."""

    home: Home
    fs: DurableFS
    wall: Callable[[], float] = time.time

    def place(self, source: PreparedAdapter) -> bool:
        with typed_io():
            target = self.home.adapter_dir(source.digest)
            if not target.exists():
                self._install(files_of(source), target)
            elif not is_intact(target, source.digest):
                return False
            # Also for a folder that was there: whoever renamed it may have crashed before this line.
            self.fs.sync_dir(target.parent)
            return True

    def repair(self, digest: str) -> None:
        if self.exists(digest) and not is_intact(self.home.adapter_dir(digest), digest):
            self.remove(digest)

    def exists(self, digest: str) -> bool:
        return self.home.adapter_dir(digest).is_dir()

    def is_here(self, digest: str) -> bool:
        return self.exists(digest)

    def path(self, digest: str) -> Path:
        folder = self.home.adapter_dir(digest)
        if not folder.is_dir():
            raise missing_files(digest)
        return folder

    def remove(self, digest: str) -> None:
        folder = self.home.adapter_dir(digest)
        with typed_io(), suppress(FileNotFoundError):
            self.fs.chmod(folder, 0o700)
            self.fs.rename(folder, self.home.tmp / new_id(_TRASH))
            self.fs.sync_dir(folder.parent)

    def stored(self) -> Iterator[tuple[str, float]]:
        with typed_io():
            for folder in sorted(self.home.adapters.glob("sha256-*")):
                with suppress(FileNotFoundError):
                    yield folder.name.removeprefix("sha256-"), self._age_s(folder)

    def sweep(self, older_than_s: float) -> None:
        with typed_io():
            for path in sorted(self.home.tmp.iterdir()):
                # Another collector may be faster.
                with suppress(FileNotFoundError):
                    stale = path.name.startswith(_STAGING) and self._age_s(path) >= older_than_s
                    if stale or path.name.startswith(_TRASH):
                        self.fs.remove_tree(path)

    def _age_s(self, path: Path) -> float:
        return self.wall() - path.stat().st_mtime

    def adopt(self, digest: str, files: Iterable[tuple[str, Iterable[bytes]]]) -> None:
        """Makes the folder of files that come from elsewhere; what `files` raises leaves nothing."""
        with typed_io():
            target = self.home.adapter_dir(digest)
            if not target.exists():
                self._install(files, target)
            self.fs.sync_dir(target.parent)

    def _install(self, files: Iterable[tuple[str, Iterable[bytes]]], target: Path) -> None:
        staging = self.home.tmp / new_id(_STAGING)
        try:
            self.fs.make_dir(staging)
            for name, chunks in files:
                self._write(staging / name, chunks)
            self.fs.sync_dir(staging)
            self._rename(staging, target)
        finally:
            self.fs.remove_tree(staging)

    def _write(self, path: Path, chunks: Iterable[bytes]) -> None:
        with self.fs.create(path) as file:
            for chunk in chunks:
                self.fs.write(file, chunk)
            self.fs.sync_file(file)
        self.fs.chmod(path, 0o400)

    def _rename(self, staging: Path, target: Path) -> None:
        try:
            self.fs.rename(staging, target)
        except OSError as error:
            # Somebody has placed the same bytes meanwhile: a folder replaces only an empty folder.
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                raise
            return
        with suppress(FileNotFoundError):  # A collector may have taken it already.
            self.fs.chmod(target, 0o500)


def files_of(source: PreparedAdapter) -> Iterator[tuple[str, Iterator[bytes]]]:
    """The files of a folder, in chunks. Raises Rejected when the weights are not those that were checked."""
    card = source.readme if source.readme is not None else model_card(source.manifest)
    yield CONFIG_FILE, iter((source.config,))
    yield WEIGHTS_FILE, _checked_copy(source.weights, source.manifest.identity.files[WEIGHTS_FILE])
    yield MANIFEST_FILE, iter((manifest_bytes(source.manifest),))
    yield CARD_FILE, iter((card.encode(),))


def _checked_copy(path: Path, entry: FileEntry) -> Iterator[bytes]:
    hasher = sha256()
    with open_regular(path) as stream:
        while chunk := stream.read(_CHUNK):
            hasher.update(chunk)
            yield chunk
    if hasher.hexdigest() != entry.sha256:
        raise Rejected(f"{WEIGHTS_FILE} changed after it was checked: publish it again.")


def is_intact(folder: Path, digest: str) -> bool:
    """Do the folder's bytes still have this digest? Reads all of them."""
    try:
        manifest = Manifest.model_validate_json(_read(folder / MANIFEST_FILE))
        return manifest.identity.digest() == digest and _matches(folder, manifest.identity)
    except (TuneDockError, ValueError, OSError):
        return False


def _matches(folder: Path, identity: Identity) -> bool:
    return all(_sha256(folder / name) == entry.sha256 for name, entry in identity.files.items() if name in PUBLIC_FILES)


def _read(path: Path) -> bytes:
    with open_regular(path) as stream:
        return stream.read()


def _sha256(path: Path) -> str:
    with open_regular(path) as stream:
        return file_digest(stream, "sha256").hexdigest()


def missing_files(digest: str) -> Unavailable:
    return Unavailable(
        f"The files of version sha256:{digest[:12]} are missing or damaged: publish the adapter again.",
        "adapter_unavailable",
    )
