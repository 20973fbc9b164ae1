"""/v1/files: create, list, get, delete, content, report."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from typing import Annotated, BinaryIO, Literal
from urllib.parse import quote

import anyio.to_thread
from fastapi import File, Form, Request, UploadFile
from starlette.responses import JSONResponse, Response, StreamingResponse
from tunedock_api.errors import BadInput

from ..services import wire
from ..services.files import FileService, NewFile
from .attempts import attempt_of
from .auth import Policy
from .paging import After, FileLimit, OrderQuery
from .routing import Routes, principal_of

MULTIPART_OVERHEAD_BYTES = 1 << 16
_CHUNK_BYTES = 1 << 20


def declare(routes: Routes, files: FileService, max_upload_bytes: int) -> None:
    @routes.post(
        "/v1/files", policy=Policy.FILES, max_body_bytes=max_upload_bytes + MULTIPART_OVERHEAD_BYTES, tags=["files"]
    )
    async def create_file(
        request: Request,
        file: Annotated[UploadFile, File()],
        purpose: Annotated[str, Form(max_length=64)],
        anchor: Annotated[Literal["created_at"] | None, Form(alias="expires_after[anchor]")] = None,
        seconds: Annotated[int | None, Form(alias="expires_after[seconds]")] = None,
    ) -> Response:
        """Uploads one file; `status` becomes `processed` or `error` when it has been validated."""
        if (anchor is None) != (seconds is None):
            raise BadInput("'expires_after' needs both 'anchor' and 'seconds'.", param="expires_after")
        new = NewFile(file.filename or "upload", purpose, file.file, seconds)
        record = await files.create(principal_of(request).project, new, attempt_of(request))
        return JSONResponse(wire.file(record))

    @routes.get("/v1/files", policy=Policy.FILES, tags=["files"])
    async def list_files(
        request: Request,
        after: After = None,
        limit: FileLimit = 10_000,
        order: OrderQuery = "desc",
        purpose: str | None = None,
    ) -> Response:
        page = await files.list(principal_of(request).project, after, limit, order, purpose)
        return JSONResponse(wire.listing(page, wire.file))

    @routes.get("/v1/files/{file_id}", policy=Policy.FILES, tags=["files"])
    async def retrieve_file(request: Request, file_id: str) -> Response:
        return JSONResponse(wire.file(await files.get(principal_of(request).project, file_id)))

    @routes.delete("/v1/files/{file_id}", policy=Policy.FILES, tags=["files"])
    async def delete_file(request: Request, file_id: str) -> Response:
        await files.delete(principal_of(request).project, file_id)
        return JSONResponse(wire.deleted(file_id, "file"))

    @routes.get("/v1/files/{file_id}/content", policy=Policy.FILES, tags=["files"])
    async def file_content(request: Request, file_id: str) -> Response:
        """The bytes as they were uploaded."""
        project = principal_of(request).project
        record = await files.get(project, file_id)
        stream = await files.open(project, file_id)
        return download(stream, record.size_bytes, record.filename)

    @routes.get("/v1/files/{file_id}/report", policy=Policy.FILES, tags=["files"])
    async def file_report(request: Request, file_id: str, validation_file: str | None = None) -> Response:
        """Everything that validation found: all errors with their lines, repeats, token lengths, the loss mask of the
        first examples, an estimate; with `validation_file` also the overlap with that file."""
        project = principal_of(request).project
        record = await files.get(project, file_id)
        report = await files.report(project, file_id, validation_file)
        return JSONResponse({"object": "file.report", "file": record.id, "status": record.status, **report})


def download(stream: BinaryIO, size_bytes: int, filename: str) -> Response:
    """Sends `stream` in chunks and closes it."""
    plain = re.sub(r"[^A-Za-z0-9._-]", "_", filename)[:100] or "file"
    disposition = f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(filename, safe='')}"
    headers = {"content-length": str(size_bytes), "content-disposition": disposition}
    return StreamingResponse(_chunks(stream), media_type="application/octet-stream", headers=headers)


async def _chunks(stream: BinaryIO) -> AsyncIterator[bytes]:
    try:
        while chunk := await anyio.to_thread.run_sync(stream.read, _CHUNK_BYTES):
            yield chunk
    finally:
        stream.close()
