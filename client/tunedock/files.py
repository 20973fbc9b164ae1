"""`client.files`: upload, read, delete."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

from tunedock_api.errors import BadInput, DeadlineExceeded

from . import operations as op
from .data import TrainingData, as_jsonl
from .pages import collect
from .types import FileInfo

_FINAL = frozenset({"processed", "error", "deleted"})


class AsyncFiles:
    """Files of the project."""

    def __init__(self, transport: op.Transport) -> None:
        self._transport = transport

    async def upload(self, data: TrainingData, *, purpose: str = "fine-tune") -> FileInfo:
        """Uploads `data` (see `tunedock.data`); the answer comes before the file is validated."""
        with as_jsonl(data) as (filename, stream):
            return FileInfo.model_validate(await self._transport.upload(filename, stream, purpose))

    async def get(self, file_id: str) -> FileInfo:
        return FileInfo.model_validate(await self._transport.call(op.GET_FILE, {"id": file_id}))

    async def list(self, *, limit: int | None = None, purpose: str | None = None) -> list[FileInfo]:
        """Newest first; `limit=None` lists everything."""
        return await collect(self._transport, op.LIST_FILES, FileInfo, query={"purpose": purpose}, limit=limit)

    async def delete(self, file_id: str) -> None:
        await self._transport.call(op.DELETE_FILE, {"id": file_id})

    def content(self, file_id: str) -> AsyncIterator[bytes]:
        """The bytes of the file, in chunks."""
        return self._transport.download(op.FILE_CONTENT, {"id": file_id}, "")

    async def wait(self, file_id: str, *, timeout_s: float = 1800.0, poll_s: float = 0.5) -> FileInfo:
        """Waits until the file is validated.

        Raises BadInput with every reason that the service gives when the file is not usable, DeadlineExceeded
        when validation takes longer than `timeout_s`.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            file = await self.get(file_id)
            if file.status == "error":
                reason = file.status_details or "it is not valid"
                raise BadInput(f"{file.filename} was refused: {reason}", "invalid_file_format", "data")
            if file.status in _FINAL:
                return file
            if time.monotonic() > deadline:
                raise DeadlineExceeded(f"{file_id} was not validated within {timeout_s:g} s.")
            await asyncio.sleep(poll_s)
