"""gRPC, with the same operations as REST: which method each one is, and the four that stream bytes or tokens.

grpc's own retries repeat only what may be repeated: reads, and creations that carry an idempotency key.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import uuid
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import aclosing, contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import grpc
from google.protobuf.message import Message
from tunedock_api.errors import BadInput
from tunedock_api.jsonpb import from_request, to_json
from tunedock_api.v1 import adapters_pb2 as ad
from tunedock_api.v1 import fine_tuning_pb2 as ft
from tunedock_api.v1 import inference_pb2 as inf
from tunedock_api.v1.adapters_pb2_grpc import AdaptersStub
from tunedock_api.v1.fine_tuning_pb2_grpc import FineTuningStub
from tunedock_api.v1.inference_pb2_grpc import InferenceStub

from . import grpc_codec as codec
from . import operations as op
from .grpc_errors import from_rpc, from_status
from .grpc_streams import Streams
from .operations import Json, Operation
from .settings import Connection

CHUNK_BYTES = 1 << 20
_MAX_MESSAGE_BYTES = 16 << 20

_METHODS: dict[str, tuple[str, str, type[Message]]] = {
    op.LIST_MODELS.name: ("Inference", "ListModels", inf.ListModelsRequest),
    op.CAPACITY.name: ("Inference", "GetCapacity", inf.GetCapacityRequest),
    op.LIST_FILES.name: ("FineTuning", "ListFiles", ft.ListFilesRequest),
    op.GET_FILE.name: ("FineTuning", "GetFile", ft.GetFileRequest),
    op.DELETE_FILE.name: ("FineTuning", "DeleteFile", ft.DeleteFileRequest),
    op.CREATE_JOB.name: ("FineTuning", "CreateJob", ft.CreateJobRequest),
    op.LIST_JOBS.name: ("FineTuning", "ListJobs", ft.ListJobsRequest),
    op.GET_JOB.name: ("FineTuning", "GetJob", ft.GetJobRequest),
    op.CANCEL_JOB.name: ("FineTuning", "CancelJob", ft.CancelJobRequest),
    op.PAUSE_JOB.name: ("FineTuning", "PauseJob", ft.PauseJobRequest),
    op.RESUME_JOB.name: ("FineTuning", "ResumeJob", ft.ResumeJobRequest),
    op.JOB_EVENTS.name: ("FineTuning", "ListJobEvents", ft.ListJobEventsRequest),
    op.JOB_CHECKPOINTS.name: ("FineTuning", "ListJobCheckpoints", ft.ListJobCheckpointsRequest),
    op.LIST_ADAPTERS.name: ("Adapters", "ListAdapters", ad.ListAdaptersRequest),
    op.GET_ADAPTER.name: ("Adapters", "GetAdapter", ad.GetAdapterRequest),
    op.DELETE_ADAPTER.name: ("Adapters", "DeleteAdapter", ad.DeleteAdapterRequest),
    op.LIST_VERSIONS.name: ("Adapters", "ListVersions", ad.ListVersionsRequest),
    op.GET_VERSION.name: ("Adapters", "GetVersion", ad.GetVersionRequest),
    op.SET_ALIAS.name: ("Adapters", "SetAlias", ad.SetAliasRequest),
    op.ROLLBACK.name: ("Adapters", "RollBack", ad.RollBackRequest),
    op.LOAD.name: ("Adapters", "LoadVersion", ad.LoadVersionRequest),
    op.PIN.name: ("Adapters", "PinVersion", ad.PinVersionRequest),
    op.UNPIN.name: ("Adapters", "UnpinVersion", ad.UnpinVersionRequest),
    op.HISTORY.name: ("Adapters", "ListHistory", ad.ListHistoryRequest),
}
_REPEATABLE = ("List", "Get", "Delete", "Load", "Pin", "Unpin", "StartUpload", "CreateJob")
# These take no page: REST ignores the query, the messages have no field for it.
_UNPAGED = frozenset({op.LIST_MODELS.name})


class GrpcTransport:
    """The transport when `grpc` (or TUNEDOCK_GRPC) is given: `host:port`, or `grpcs://host:port` for TLS."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._target = (connection.grpc_target or "").removeprefix("grpc://").removeprefix("grpcs://")

    @cached_property
    def _channel(self) -> grpc.aio.Channel:
        options = (
            ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
            ("grpc.keepalive_time_ms", 30_000),
            ("grpc.enable_retries", 1),
            ("grpc.service_config", json.dumps(_service_config(self._connection.max_retries))),
        )
        credentials = _credentials(self._connection)
        if credentials is None:
            return grpc.aio.insecure_channel(self._target, options=options)
        return grpc.aio.secure_channel(self._target, credentials, options=options)

    @cached_property
    def _stubs(self) -> dict[str, Any]:
        channel = self._channel
        return {
            "Inference": InferenceStub(channel),
            "FineTuning": FineTuningStub(channel),
            "Adapters": AdaptersStub(channel),
        }

    async def call(
        self,
        operation: Operation,
        path: Mapping[str, Any] | None = None,
        query: Mapping[str, Any] | None = None,
        body: Json | None = None,
    ) -> Json:
        if operation is op.CHAT:
            return codec.chat_answer(await self._unary("Inference", "Chat", codec.chat_request(body or {})))
        if operation is op.COMPLETE:
            return codec.complete_answer(await self._unary("Inference", "Complete", codec.complete_request(body or {})))
        service, method, kind = _METHODS[operation.name]
        request = from_request(kind, _asked(operation, path, query, body))
        return to_json(await self._unary(service, method, request))

    @cached_property
    def _streams(self) -> Streams:
        return Streams(lambda: self._stubs["Inference"].StreamMany(metadata=self._metadata()))

    async def stream(self, operation: Operation, body: Json) -> AsyncIterator[Json]:
        model = body["model"]
        asked = codec.chat_request(body)
        with self._translated():
            async with aclosing(self._streams.stream(asked, self._connection.timeout_s)) as parts:
                async for part in parts:
                    if part.end.status:
                        raise from_status(part.end.status)
                    if part.HasField("chunk"):
                        model = part.chunk.model or model
                        yield codec.chunk(part.chunk, model)

    async def upload(self, filename: str, stream: BinaryIO, purpose: str) -> Json:
        """Sends the whole stream; where the connection breaks, goes on from what the service has stored."""
        size, sha256 = await asyncio.to_thread(_measured, stream)
        start = ft.StartUploadRequest(filename=filename, size_bytes=size, purpose=purpose)
        upload = await self._unary("FineTuning", "StartUpload", start)
        for _ in range(self._connection.max_retries):
            try:
                return await self._send(stream, upload, sha256)
            except TransportLost:
                again = ft.StartUploadRequest(upload_id=upload.upload_id)
                upload = await self._unary("FineTuning", "StartUpload", again)
        return await self._send(stream, upload, sha256)

    async def _send(self, stream: BinaryIO, upload: ft.Upload, sha256: str) -> Json:
        messages = _upload_messages(stream, upload, sha256)
        try:
            return to_json(await self._stubs["FineTuning"].UploadFile(messages, **self._options()))
        except grpc.aio.AioRpcError as error:
            failure = from_rpc(error, self._target, self._connection.timeout_s)
            if error.code() is grpc.StatusCode.UNAVAILABLE and failure.code == "engine_unavailable":
                raise TransportLost(str(failure)) from error
            raise failure from error

    async def publish(self, name: str, files: Mapping[str, BinaryIO]) -> Json:
        with self._translated():
            messages = _publish_messages(name, files)
            return to_json(await self._stubs["Adapters"].PublishVersion(messages, **self._options()))

    async def download(self, operation: Operation, path: Mapping[str, Any], file: str) -> AsyncIterator[bytes]:
        if operation is op.FILE_CONTENT:
            call = self._stubs["FineTuning"].ReadFile(ft.ReadFileRequest(id=path["id"]), **self._options())
        else:
            request = ad.DownloadVersionRequest(name=path["name"], version=str(path["version"]), file=file)
            call = self._stubs["Adapters"].DownloadVersion(request, **self._options())
        with self._translated():
            async for chunk in call:
                yield chunk.data

    async def aclose(self) -> None:
        if "_streams" in self.__dict__:
            await self._streams.aclose()
        if "_channel" in self.__dict__:
            await self._channel.close()

    async def _unary(self, service: str, method: str, request: Message) -> Any:
        with self._translated():
            return await getattr(self._stubs[service], method)(request, **self._options())

    def _options(self) -> dict[str, Any]:
        return {"timeout": self._connection.timeout_s, "metadata": self._metadata()}

    def _metadata(self) -> tuple[tuple[str, str], ...]:
        key = self._connection.api_key
        return (("authorization", f"Bearer {key}"),) if key else ()

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except grpc.aio.AioRpcError as error:
            raise from_rpc(error, self._target, self._connection.timeout_s) from error


class TransportLost(Exception):
    """The connection broke in the middle of an upload."""


def _asked(
    operation: Operation, path: Mapping[str, Any] | None, query: Mapping[str, Any] | None, body: Json | None
) -> Json:
    """One flat request: REST's path, query and body, in which paths are always text."""
    asked: Json = {key: str(value) for key, value in (path or {}).items()}
    if operation.name not in _UNPAGED:
        asked |= query or {}
    asked |= body or {}
    return asked | ({"idempotency_key": uuid.uuid4().hex} if operation is op.CREATE_JOB else {})


def _service_config(max_retries: int) -> Json:
    names = [
        {"service": f"tunedock_api.v1.{service}", "method": method}
        for service, method in [(service, method) for service, method, _ in _METHODS.values()]
        if method.startswith(_REPEATABLE)
    ]
    policy = {
        "maxAttempts": min(max_retries + 1, 5),
        "initialBackoff": "0.5s",
        "maxBackoff": "8s",
        "backoffMultiplier": 2,
        "retryableStatusCodes": ["UNAVAILABLE"],
    }
    return {"methodConfig": [{"name": names, "retryPolicy": policy}] if max_retries else []}


def _credentials(connection: Connection) -> grpc.ChannelCredentials | None:
    """None for a plain connection. Raises BadInput when a certificate file cannot be read."""
    if not (connection.grpc_target or "").startswith("grpcs://"):
        return None
    try:
        ca, cert, key = (
            Path(path).read_bytes() if path else None
            for path in (connection.tls_ca, connection.tls_cert, connection.tls_key)
        )
    except OSError as error:
        raise BadInput(f"cannot read the TLS file {error.filename}: {error.strerror}.", param="tls") from error
    return grpc.ssl_channel_credentials(ca, key, cert)


def _measured(stream: BinaryIO) -> tuple[int, str]:
    """(size in bytes, sha256 hex) of a stream from where it stands; it stands there again afterwards."""
    start, digest = stream.tell(), hashlib.sha256()
    while chunk := stream.read(CHUNK_BYTES):
        digest.update(chunk)
    size = stream.tell() - start
    stream.seek(start)
    return size, digest.hexdigest()


def _upload_messages(stream: BinaryIO, upload: ft.Upload, sha256: str) -> Iterator[ft.UploadFileRequest]:
    stream.seek(upload.stored_bytes)
    yield ft.UploadFileRequest(upload_id=upload.upload_id, offset=upload.stored_bytes, sha256=sha256)
    while chunk := stream.read(CHUNK_BYTES):
        yield ft.UploadFileRequest(data=chunk)


def _publish_messages(name: str, files: Mapping[str, BinaryIO]) -> Iterator[ad.PublishVersionRequest]:
    yield ad.PublishVersionRequest(start=ad.PublishStart(name=name, idempotency_key=uuid.uuid4().hex))
    for part, stream in files.items():
        yield ad.PublishVersionRequest(file=part)
        while chunk := stream.read(CHUNK_BYTES):
            yield ad.PublishVersionRequest(data=chunk)
