"""`tunedock_api.v1.Adapters`."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import ExitStack
from typing import BinaryIO, cast

from tunedock_api.errors import BadInput
from tunedock_api.jsonpb import Json, from_answer
from tunedock_api.manifest import CONFIG_FILE, WEIGHTS_FILE
from tunedock_api.names import DEFAULT_ALIAS
from tunedock_api.v1 import adapters_pb2 as pb
from tunedock_api.v1.adapters_pb2_grpc import AdaptersServicer
from tunedock_api.v1.fine_tuning_pb2 import DataChunk
from tunedock_registry.records import Attempt, Target, VersionRecord

from ..http.publishing import profile_of
from ..services import wire
from ..services.adapters import AdapterService, Who, targets_of
from ..services.publishing import Publisher, Upload
from .files import chunks_of
from .guard import Context, current_call
from .paging import after_of, limit_of, page

MANIFEST_PART = "manifest"
PARTS = (CONFIG_FILE, WEIGHTS_FILE, MANIFEST_PART)
WATCH_S = 0.25


class AdaptersRpc(AdaptersServicer):
    """`generation` is a number that changes with every change of the catalog; `max_bytes` bounds one published file."""

    def __init__(
        self, adapters: AdapterService, publisher: Publisher, generation: Callable[[], int], max_bytes: int
    ) -> None:
        self._adapters = adapters
        self._publisher = publisher
        self._generation = generation
        self._max_bytes = max_bytes

    async def ListAdapters(self, request: pb.ListAdaptersRequest, context: Context) -> pb.ListAdaptersResponse:
        project = current_call().principal.project
        found = await self._adapters.list(project, after_of(request.after), limit_of(request.limit))
        shown = wire.listing(found, lambda one: wire.adapter(one, self._adapters.known_aliases(project, one.name)))
        return page(pb.ListAdaptersResponse, shown)

    async def GetAdapter(self, request: pb.GetAdapterRequest, context: Context) -> pb.Adapter:
        return from_answer(pb.Adapter, await self._shown(request.name))

    async def DeleteAdapter(self, request: pb.DeleteAdapterRequest, context: Context) -> pb.DeleteAdapterResponse:
        await self._adapters.delete(_who(), request.name, "")
        return pb.DeleteAdapterResponse(name=request.name, deleted=True)

    async def ListVersions(self, request: pb.ListVersionsRequest, context: Context) -> pb.ListVersionsResponse:
        project, limit = current_call().principal.project, limit_of(request.limit)
        found = await self._adapters.versions(project, request.name, _cursor(request.after), limit)
        return page(pb.ListVersionsResponse, wire.listing(found, self._version))

    async def GetVersion(self, request: pb.GetVersionRequest, context: Context) -> pb.Version:
        project = current_call().principal.project
        found = await self._adapters.version(project, request.name, request.version, request.wait_s)
        return from_answer(pb.Version, self._version(found))

    async def PublishVersion(
        self, request_iterator: AsyncIterator[pb.PublishVersionRequest], context: Context
    ) -> pb.Version:
        first = await anext(request_iterator, None)
        if first is None or first.WhichOneof("part") != "start":
            raise BadInput("The first message must be 'start'.", param="start")
        project, attempt = current_call().principal.project, Attempt(first.start.idempotency_key or None, None, False)
        serving = profile_of(first.start.serving or None)
        with ExitStack() as opened:
            files = await self._received(opened, request_iterator)
            upload = Upload(files[CONFIG_FILE], files[WEIGHTS_FILE], files.get(MANIFEST_PART), serving)
            version = await self._publisher.publish(project, first.start.name, upload, attempt)
        return from_answer(pb.Version, self._version(version))

    async def _received(
        self, opened: ExitStack, messages: AsyncIterator[pb.PublishVersionRequest]
    ) -> dict[str, BinaryIO]:
        """The parts by name, each in a nameless file of its own that `opened` closes. Raises BadInput."""
        files: dict[str, BinaryIO] = {}
        name, left = "", 0
        async for message in messages:
            match message.WhichOneof("part"):
                case "file" if message.file in PARTS:
                    name, left = message.file, self._max_bytes
                    files[name] = cast(BinaryIO, opened.enter_context(tempfile.TemporaryFile()))  # noqa: SIM115
                case "data" if name:
                    left -= len(message.data)
                    if left < 0:
                        raise BadInput(f"{name} is larger than {self._max_bytes:,} bytes.", "payload_too_large", name)
                    await asyncio.to_thread(files[name].write, message.data)
                case _:
                    raise BadInput(f"After 'start', name one of {', '.join(PARTS)} before its data.", param="file")
        missing = [part for part in PARTS[:2] if part not in files]
        if missing:
            raise BadInput(f"The part {missing[0]} is missing.", param=missing[0])
        for stream in files.values():
            stream.seek(0)
        return files

    async def DownloadVersion(
        self, request: pb.DownloadVersionRequest, context: Context
    ) -> AsyncGenerator[DataChunk, None]:
        project = current_call().principal.project
        _, stream = await self._adapters.open_file(project, request.name, request.version, request.file)
        async for chunk in chunks_of(stream):
            yield chunk

    async def SetAlias(self, request: pb.SetAliasRequest, context: Context) -> pb.Alias:
        given = [Target(target.version, target.weight) for target in request.targets]
        targets = targets_of(request.version or None, given or None)
        expected = request.expected_revision if request.HasField("expected_revision") else None
        moved = await self._adapters.set_alias(_who(), request.name, request.alias, targets, expected, request.reason)
        return from_answer(pb.Alias, wire.alias(moved))

    async def RollBack(self, request: pb.RollBackRequest, context: Context) -> pb.Alias:
        alias = request.alias or DEFAULT_ALIAS
        return from_answer(
            pb.Alias, wire.alias(await self._adapters.rollback(_who(), request.name, alias, request.reason))
        )

    async def LoadVersion(self, request: pb.LoadVersionRequest, context: Context) -> pb.Version:
        project = current_call().principal.project
        return from_answer(pb.Version, self._version(await self._adapters.load(project, request.name, request.version)))

    async def PinVersion(self, request: pb.PinVersionRequest, context: Context) -> pb.Version:
        project = current_call().principal.project
        return from_answer(pb.Version, self._version(await self._adapters.pin(project, request.name, request.version)))

    async def UnpinVersion(self, request: pb.UnpinVersionRequest, context: Context) -> pb.Version:
        project = current_call().principal.project
        return from_answer(
            pb.Version, self._version(await self._adapters.unpin(project, request.name, request.version))
        )

    async def ListHistory(self, request: pb.ListHistoryRequest, context: Context) -> pb.ListHistoryResponse:
        project, limit = current_call().principal.project, limit_of(request.limit)
        found = await self._adapters.history(project, request.name, after_of(request.after), limit)
        return page(pb.ListHistoryResponse, wire.listing(found, wire.history))

    async def WatchAdapters(
        self, request: pb.WatchAdaptersRequest, context: Context
    ) -> AsyncGenerator[pb.Adapter, None]:
        """Polls a number in memory, and asks the registry only when that has changed."""
        seen: dict[str, Json] = {}
        generation: int | None = None
        while True:
            if generation != (now := self._generation()):
                generation = now
                for shown in await self._matching(request.name):
                    if seen.get(shown["name"]) != shown:
                        seen[shown["name"]] = shown
                        yield from_answer(pb.Adapter, shown)
            await asyncio.sleep(WATCH_S)

    async def _matching(self, name: str) -> list[Json]:
        """All adapters, or the named one. Raises NotFound for a name that does not exist."""
        if name:
            return [await self._shown(name)]
        project, found, after = current_call().principal.project, [], None
        while True:
            listed = await self._adapters.list(project, after, 100)
            found += [await self._shown(one.name) for one in listed.items]
            if not listed.has_more:
                return found
            after = listed.items[-1].name

    async def _shown(self, name: str) -> Json:
        return wire.adapter(*await self._adapters.get(current_call().principal.project, name))

    def _version(self, record: VersionRecord) -> Json:
        return wire.version(record, self._adapters.residency(record)) | {"id": f"ver_{record.id}"}


def _who() -> Who:
    principal = current_call().principal
    return Who(principal.project, principal.actor)


def _cursor(after: str) -> int | None:
    """The id of a version, as lists give it."""
    number = (after_of(after) or "").removeprefix("ver_")
    if number and not number.isdecimal():
        raise BadInput(f"No version {after[:80]!r} to continue after.", param="after")
    return int(number) if number else None
