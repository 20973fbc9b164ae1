"""Large files in parts. The file that comes of an upload is validated like any other."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO

from tunedock_registry.records import Attempt, PartRecord, UploadRecord
from tunedock_registry.registry import Registry

from .files import FileValidator, NewFile, check_new_file

_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class NewUpload:
    """`size_bytes` is the size of the whole file; `expires_after_s` is about the file that comes of it."""

    filename: str
    purpose: str
    size_bytes: int
    mime_type: str
    expires_after_s: int | None = None


class UploadService:
    """Use cases on uploads; every one belongs to `project`."""

    def __init__(self, registry: Registry, validator: FileValidator) -> None:
        self._uploads = registry.uploads
        self._validator = validator

    async def create(self, project: str, new: NewUpload, attempt: Attempt) -> UploadRecord:
        """Raises BadInput for a purpose, name, size or expiry that cannot be."""
        check_new_file(NewFile(new.filename, new.purpose, expires_after_s=new.expires_after_s))
        return await asyncio.to_thread(
            self._uploads.create,
            project,
            new.filename,
            new.purpose,
            new.size_bytes,
            new.mime_type,
            new.expires_after_s,
            attempt=attempt,
        )

    async def add_part(self, project: str, upload_id: str, stream: BinaryIO, attempt: Attempt) -> PartRecord:
        return await asyncio.to_thread(self._uploads.add_part, project, upload_id, _chunks(stream), attempt=attempt)

    async def complete(self, project: str, upload_id: str, part_ids: Sequence[str], md5: str | None) -> UploadRecord:
        """Raises BadInput when sizes, digest or parts do not fit."""
        record = await asyncio.to_thread(self._uploads.complete, project, upload_id, part_ids, md5)
        if record.file is not None:
            self._validator.submit(record.file)
        return record

    async def cancel(self, project: str, upload_id: str) -> UploadRecord:
        return await asyncio.to_thread(self._uploads.cancel, project, upload_id)


def _chunks(stream: BinaryIO) -> Iterator[bytes]:
    while chunk := stream.read(_CHUNK_BYTES):
        yield chunk
