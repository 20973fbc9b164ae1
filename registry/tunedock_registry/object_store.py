"""An object store through fsspec: S3, or whatever else fsspec knows.

Objects are made once and never overwritten. On S3 that is the store's own promise (`If-None-Match: *`); elsewhere fsspec
looks first and writes then, and what keeps an object true is that its key is the digest of its bytes.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec
from tunedock_api.errors import BadInput, Unavailable

CHUNK_BYTES = 8 * 2**20

# Every call has a time limit and a budget of tries; with the defaults a dead endpoint blocks for minutes.
_S3_OPTIONS: dict[str, Any] = {
    "config_kwargs": {"connect_timeout": 10, "read_timeout": 60, "retries": {"max_attempts": 3}},
    "max_concurrency": 2,
    "use_listings_cache": False,
    "skip_instance_cache": True,
}


class ObjectStore:
    """Keys are relative, with `/`. All calls raise Unavailable when the store fails or refuses."""

    def __init__(self, filesystem: Any, root: str, failures: tuple[type[Exception], ...] = (OSError,)) -> None:
        self._fs = filesystem
        self._root = root.rstrip("/")
        self._failures = failures

    def create(self, key: str, source: Path) -> bool:
        """Stores the file whole or not at all. False when there is an object of this key already."""
        if self.exists(key):  # The bytes would travel before the store says no.
            return False
        with self._typed():
            try:
                self._fs.put_file(str(source), self._at(key), mode="create", chunksize=CHUNK_BYTES)
            except FileExistsError:
                return False
            return True

    def exists(self, key: str) -> bool:
        with self._typed():
            return bool(self._fs.exists(self._at(key)))

    def read(self, key: str) -> Iterator[bytes]:
        """The object's bytes in chunks. Raises FileNotFoundError with the first one."""
        with self._typed(FileNotFoundError), self._fs.open(self._at(key), "rb", block_size=CHUNK_BYTES) as stream:
            while chunk := stream.read(CHUNK_BYTES):
                yield chunk

    def delete(self, key: str) -> None:
        """Fine when it is not there."""
        with self._typed():
            try:
                self._fs.rm_file(self._at(key))
            except FileNotFoundError:
                return

    def list(self, prefix: str) -> Iterator[tuple[str, float]]:
        """(key, Unix time of its creation) of every object below `prefix`."""
        with self._typed():
            found: dict[str, Any] = self._fs.find(self._at(prefix), detail=True)
            for path, info in found.items():
                modified = info.get("LastModified") or info.get("created") or info.get("mtime")
                yield posixpath.relpath(path, self._root), _seconds(modified)

    def _at(self, key: str) -> str:
        return f"{self._root}/{key}"

    @contextmanager
    def _typed(self, *passes: type[Exception]) -> Iterator[None]:
        try:
            yield
        except passes:
            raise
        except self._failures as error:
            raise Unavailable(
                "The object store does not answer or refuses: try again, or check TUNEDOCK_STORE_URL and its credentials.",
                "storage_unavailable",
                retry_after_s=1.0,
            ) from error


def open_store(url: str) -> ObjectStore:
    """`s3://BUCKET/PREFIX` (credentials and endpoint as every AWS tool finds them: AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL…).

    Raises BadInput for a URL that fsspec does not know, or when the package for it is not installed.
    """
    protocol = fsspec.utils.get_protocol(url)
    try:
        filesystem, root = fsspec.url_to_fs(url, **(_S3_OPTIONS if protocol == "s3" else {}))
    except ImportError as error:
        raise BadInput("This store needs one more package: pip install 'tunedock[s3]'.", param="store_url") from error
    except ValueError as error:
        raise BadInput(
            f"TUNEDOCK_STORE_URL begins with {protocol[:20]!r}: use s3://BUCKET/PREFIX.", param="store_url"
        ) from error
    return ObjectStore(filesystem, root, _failures(protocol))


def _failures(protocol: str) -> tuple[type[Exception], ...]:
    """s3fs turns most errors into OSError; a dead endpoint or missing credentials stay botocore's."""
    if protocol != "s3":
        return (OSError,)
    from botocore.exceptions import BotoCoreError

    return (OSError, BotoCoreError)


def _seconds(modified: Any) -> float:
    return float(modified.timestamp() if hasattr(modified, "timestamp") else modified or 0.0)
