"""One file sent in one stream that may break: what arrived stays, and the sender goes on from there.

An upload's parts are laid down in the order of the stream, so the bytes stored are always a beginning of the file.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tunedock_api.errors import BadInput
from tunedock_registry.records import FileRecord, UploadRecord
from tunedock_registry.registry import Registry

from .files import PURPOSES, FileValidator

# What a broken stream loses at most, and what one stream holds in memory.
PART_BYTES = 8 << 20


@dataclass(frozen=True)
class Transfer:
    """An upload and how much of it is stored."""

    upload: UploadRecord
    stored_bytes: int


class Transfers:
    """Use cases on streamed uploads; every one belongs to `project`."""

    def __init__(self, registry: Registry, validator: FileValidator) -> None:
        self._registry = registry
        self._validator = validator
        self._senders: dict[str, asyncio.Task[object]] = {}

    async def begin(self, project: str, filename: str, purpose: str, size_bytes: int) -> Transfer:
        """Raises BadInput for a purpose, name or size that cannot be."""
        if purpose not in PURPOSES:
            raise BadInput(f"'{purpose[:40]}' is not one of {', '.join(PURPOSES)}.", param="purpose")
        if not 1 <= len(filename) <= 255 or "\0" in filename:
            raise BadInput("A file name has 1 to 255 characters.", param="filename")
        upload = await asyncio.to_thread(
            self._registry.uploads.create, project, filename, purpose, size_bytes, "application/jsonl"
        )
        return Transfer(upload, 0)

    async def resume(self, project: str, upload_id: str) -> Transfer:
        """Where an upload stands, after ending a call that still sends to it: its sender has given it up.

        Raises NotFound.
        """
        found = await self._find(project, upload_id)
        sender = self._senders.get(upload_id)
        if sender is None or sender is asyncio.current_task():
            return found
        sender.cancel()
        await asyncio.wait({sender})
        return await self._find(project, upload_id)

    async def _find(self, project: str, upload_id: str) -> Transfer:
        upload = await asyncio.to_thread(self._registry.uploads.get, project, upload_id)
        parts = await asyncio.to_thread(self._registry.uploads.parts, project, upload_id)
        return Transfer(upload, sum(part.size_bytes for part in parts))

    async def receive(
        self, project: str, upload_id: str, offset: int, sha256: str, chunks: AsyncIterator[bytes]
    ) -> FileRecord:
        """Stores what `chunks` yields from `offset` on and, when that was the rest, makes the file.

        Raises BadInput when `offset` is not where the stored bytes end, when bytes are missing or too many at the end
        (what came is kept), or when the whole does not fit `sha256`.
        """
        transfer = await self.resume(project, upload_id)
        if offset != transfer.stored_bytes:
            raise BadInput(f"Go on from byte {transfer.stored_bytes}, not {offset}.", "invalid_state", param="offset")
        with self._sending(upload_id):
            stored = offset + await self._store(project, upload_id, chunks)
            size = transfer.upload.size_bytes
            if stored != size:
                raise BadInput(f"{stored} of {size} bytes are stored: go on from there.", "invalid_state", param="data")
            return await self._finish(project, upload_id, sha256)

    @contextmanager
    def _sending(self, upload_id: str) -> Iterator[None]:
        task = asyncio.current_task()
        if task is not None:
            self._senders[upload_id] = task
        try:
            yield
        finally:
            if self._senders.get(upload_id) is task:
                del self._senders[upload_id]

    async def _store(self, project: str, upload_id: str, chunks: AsyncIterator[bytes]) -> int:
        """Bytes stored. Memory: one part."""
        total, part = 0, bytearray()
        async for chunk in chunks:
            part += chunk
            if len(part) >= PART_BYTES:
                total += await self._add(project, upload_id, bytes(part))
                part.clear()
        return total + (await self._add(project, upload_id, bytes(part)) if part else 0)

    async def _add(self, project: str, upload_id: str, part: bytes) -> int:
        """A part is stored whole or not at all: a call that ends meanwhile ends after it."""
        await _to_the_end(asyncio.to_thread(self._registry.uploads.add_part, project, upload_id, [part]))
        return len(part)

    async def _finish(self, project: str, upload_id: str, sha256: str) -> FileRecord:
        parts = await asyncio.to_thread(self._registry.uploads.parts, project, upload_id)
        done = await asyncio.to_thread(self._registry.uploads.complete, project, upload_id, [part.id for part in parts])
        file = done.file
        if file is None:
            raise BadInput(f"The file of upload {upload_id} was deleted meanwhile: send it again.", "invalid_state")
        if sha256 and sha256.lower() != file.sha256:
            await asyncio.to_thread(self._registry.files.delete, project, file.id)
            raise BadInput(f"The file arrived with sha256 {file.sha256}: send it again.", param="sha256")
        self._validator.submit(file)
        return file


async def _to_the_end(work: Coroutine[Any, Any, object]) -> None:
    """Awaits `work`, which goes on when this task is cancelled, however often; the cancellation is raised after it."""
    running, cancelled = asyncio.ensure_future(work), False
    while not running.done():
        try:
            await asyncio.wait({running})
        except asyncio.CancelledError:
            cancelled = True
    if cancelled:
        raise asyncio.CancelledError
    running.result()
