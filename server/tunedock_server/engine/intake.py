"""Checks a version's directory against its digest before the engine reads it. Pure file work, no tensors."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from pydantic import ValidationError
from tunedock_api.errors import Unavailable
from tunedock_api.manifest import CONFIG_FILE, MANIFEST_FILE, WEIGHTS_FILE, Manifest

MAX_REMEMBERED = 4_096
Signature = tuple[tuple[int, ...], ...]


class VerifiedFiles:
    """Remembers which files were hashed, by inode, size and times, so that a version that comes back costs a `stat`."""

    def __init__(self) -> None:
        self._seen: dict[str, Signature] = {}

    def known(self, path: Path, digest: str) -> bool:
        """Whether these very files were hashed before: in microseconds."""
        try:
            return digest in self._seen and self._seen[digest] == _signature(path)
        except OSError:
            return False

    def measure(self, path: Path, digest: str, public: str) -> Mapping[str, str]:
        """Manifest and sizes alone, so that the engine may begin to read: never more than was published.

        Returns what `verify` has to hash: file name -> sha256.
        Raises Unavailable `adapter_unavailable` when a file is missing or is not what was published.
        """
        with self._checking(digest, public):
            return {name: entry.sha256 for name, entry in _manifest(path, digest).identity.files.items()}

    def verify(self, path: Path, digest: str, public: str, expected: Mapping[str, str]) -> None:
        """Hashes, and hardly needs the interpreter for it. Raises as `measure`."""
        with self._checking(digest, public):
            signature = _signature(path)
            _check(path, expected)
            if len(self._seen) >= MAX_REMEMBERED:
                self._seen.clear()
            self._seen[digest] = signature

    @contextmanager
    def _checking(self, digest: str, public: str) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError, ValidationError) as error:
            self._seen.pop(digest, None)
            reason = "its files are missing" if isinstance(error, FileNotFoundError) else "its files are damaged"
            message = f"{public} cannot be loaded: {reason}. Publish it again or restore the store."
            raise Unavailable(message, "adapter_unavailable") from error


def _signature(path: Path) -> Signature:
    stats = [(path / name).stat() for name in (CONFIG_FILE, WEIGHTS_FILE, MANIFEST_FILE)]
    # The change time is what nobody can set back.
    return tuple((s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for s in stats)


def _manifest(path: Path, digest: str) -> Manifest:
    manifest = Manifest.model_validate_json((path / MANIFEST_FILE).read_bytes())
    if manifest.identity.digest() != digest:
        raise ValueError("the manifest belongs to another version")
    for name, entry in manifest.identity.files.items():
        if (path / name).stat().st_size != entry.size_bytes:
            raise ValueError(f"{name} has another size")
    return manifest


def _check(path: Path, expected: Mapping[str, str]) -> None:
    for name, sha256 in expected.items():
        with (path / name).open("rb") as stream:
            if hashlib.file_digest(stream, "sha256").hexdigest() != sha256:
                raise ValueError(f"{name} has changed")
