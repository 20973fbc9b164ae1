"""The files half of `tunedock_api.v1.FineTuning`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from typing import BinaryIO

from tunedock_api.errors import BadInput
from tunedock_api.jsonpb import from_answer
from tunedock_api.v1 import fine_tuning_pb2 as pb
from tunedock_api.v1.fine_tuning_pb2_grpc import FineTuningServicer

from ..services import wire
from ..services.files import FileService
from ..services.transfers import Transfer, Transfers
from .guard import Context, current_call
from .paging import after_of, limit_of, page

CHUNK_BYTES = 1 << 20
MAX_FILES = 10_000


class FilesRpc(FineTuningServicer):
    """Mixed into `FineTuningRpc`: one proto service, two files of code."""

    def __init__(self, files: FileService, transfers: Transfers) -> None:
        self._files = files
        self._transfers = transfers

    async def StartUpload(self, request: pb.StartUploadRequest, context: Context) -> pb.Upload:
        project = current_call().principal.project
        if request.upload_id:
            return _upload(await self._transfers.resume(project, request.upload_id))
        new = await self._transfers.begin(project, request.filename, request.purpose, request.size_bytes)
        return _upload(new)

    async def UploadFile(self, request_iterator: AsyncIterator[pb.UploadFileRequest], context: Context) -> pb.File:
        first = await anext(request_iterator, None)
        if first is None or not first.upload_id:
            raise BadInput("The first message must name the upload_id.", param="upload_id")
        file = await self._transfers.receive(
            current_call().principal.project,
            first.upload_id,
            first.offset,
            first.sha256,
            _bytes(first, request_iterator),
        )
        return from_answer(pb.File, wire.file(file))

    async def GetFile(self, request: pb.GetFileRequest, context: Context) -> pb.File:
        return from_answer(pb.File, wire.file(await self._files.get(current_call().principal.project, request.id)))

    async def ListFiles(self, request: pb.ListFilesRequest, context: Context) -> pb.ListFilesResponse:
        found = await self._files.list(
            current_call().principal.project,
            after_of(request.after),
            limit_of(request.limit, MAX_FILES),
            "desc",
            request.purpose or None,
        )
        return page(pb.ListFilesResponse, wire.listing(found, wire.file))

    async def DeleteFile(self, request: pb.DeleteFileRequest, context: Context) -> pb.DeleteFileResponse:
        await self._files.delete(current_call().principal.project, request.id)
        return pb.DeleteFileResponse(id=request.id, deleted=True)

    async def ReadFile(self, request: pb.ReadFileRequest, context: Context) -> AsyncGenerator[pb.DataChunk, None]:
        stream = await self._files.open(current_call().principal.project, request.id)
        async for chunk in chunks_of(stream):
            yield chunk


async def chunks_of(stream: BinaryIO) -> AsyncGenerator[pb.DataChunk, None]:
    """Reads `stream` to its end and closes it."""
    with stream:
        while data := await asyncio.to_thread(stream.read, CHUNK_BYTES):
            yield pb.DataChunk(data=data)


async def _bytes(first: pb.UploadFileRequest, rest: AsyncIterator[pb.UploadFileRequest]) -> AsyncIterator[bytes]:
    if first.data:
        yield first.data
    async for message in rest:
        yield message.data


def _upload(transfer: Transfer) -> pb.Upload:
    upload = transfer.upload
    return pb.Upload(
        upload_id=upload.id,
        stored_bytes=transfer.stored_bytes,
        size_bytes=upload.size_bytes,
        status=upload.status,
        expires_at=upload.expires_at,
    )
