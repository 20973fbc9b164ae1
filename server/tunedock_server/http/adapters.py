"""/v1/adapters: versions, aliases and their life; /v1/capacity."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Annotated

from fastapi import Body, Query, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import JSONResponse, Response
from tunedock_api.errors import BadInput
from tunedock_registry.records import AliasRecord, Target, VersionRecord

from ..services import wire
from ..services.adapters import AdapterService, Who, targets_of
from .auth import Policy
from .files import download
from .paging import After, Limit
from .routing import Routes, principal_of

VERSION_CURSOR = "ver_"


class Strict(BaseModel):
    """Unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class TargetBody(Strict):
    version: int = Field(ge=1)
    weight: float = Field(default=1.0, gt=0, le=1e6)


class AliasBody(Strict):
    """`expected_revision`: move only if the alias is still there; 0: only if it is new."""

    version: int | None = Field(default=None, ge=1)
    targets: list[TargetBody] | None = Field(default=None, max_length=16)
    expected_revision: int | None = Field(default=None, ge=0)
    reason: str = Field(default="", max_length=1024)


class RollbackBody(Strict):
    alias: str = Field(default="production", max_length=64)
    reason: str = Field(default="", max_length=1024)


Reason = Annotated[str, Query(max_length=1024)]


READ, WRITE, TAGS = Policy.ADAPTERS_READ, Policy.ADAPTERS_WRITE, ["adapters"]


def declare(routes: Routes, adapters: AdapterService, capacity: Callable[[], wire.Json]) -> None:
    _declare_adapters(routes, adapters, capacity)
    _declare_versions(routes, adapters)
    _declare_aliases(routes, adapters)


def _declare_adapters(routes: Routes, adapters: AdapterService, capacity: Callable[[], wire.Json]) -> None:
    @routes.get("/v1/capacity", policy=READ, tags=TAGS)
    async def get_capacity() -> Response:
        """Slots, host places, bytes per slot at each rank, KV blocks."""
        return JSONResponse(capacity())

    @routes.get("/v1/adapters", policy=READ, tags=TAGS)
    async def list_adapters(request: Request, after: After = None, limit: Limit = 20) -> Response:
        project = principal_of(request).project
        page = await adapters.list(project, after, limit)
        return JSONResponse(
            wire.listing(page, lambda one: wire.adapter(one, adapters.known_aliases(project, one.name)))
        )

    @routes.get("/v1/adapters/{name}", policy=READ, tags=TAGS)
    async def get_adapter(request: Request, name: str) -> Response:
        record, aliases = await adapters.get(principal_of(request).project, name)
        return JSONResponse(wire.adapter(record, aliases))

    @routes.delete("/v1/adapters/{name}", policy=WRITE, tags=TAGS)
    async def delete_adapter(request: Request, name: str, reason: Reason = "") -> Response:
        """Removes all aliases and retires all versions. Running requests finish on what they have."""
        await adapters.delete(_who(request), name, reason)
        return JSONResponse(wire.deleted(name, "adapter"))


def _declare_versions(routes: Routes, adapters: AdapterService) -> None:
    def shown(version: VersionRecord) -> wire.Json:
        return wire.version(version, adapters.residency(version)) | {"id": f"{VERSION_CURSOR}{version.id}"}

    @routes.get("/v1/adapters/{name}/versions", policy=READ, tags=TAGS)
    async def list_versions(request: Request, name: str, after: After = None, limit: Limit = 20) -> Response:
        """Newest first, checkpoints included."""
        page = await adapters.versions(principal_of(request).project, name, _cursor(after), limit)
        return JSONResponse(wire.listing(page, shown))

    @routes.get("/v1/adapters/{name}/versions/{version}", policy=READ, tags=TAGS)
    async def get_version(request: Request, name: str, version: str, wait_s: float = 0.0) -> Response:
        """`version`: a number, or a checkpoint's tag. With `wait_s` (at most 30) the answer comes as soon as the version has
        been verified."""
        return JSONResponse(shown(await adapters.version(principal_of(request).project, name, version, wait_s)))

    @routes.delete("/v1/adapters/{name}/versions/{version}", policy=WRITE, tags=TAGS)
    async def retire_version(request: Request, name: str, version: str, reason: Reason = "") -> Response:
        """Stops offering the version; its files go when nobody uses them any more."""
        return JSONResponse(shown(await adapters.retire(principal_of(request).project, name, version, reason)))

    @routes.get("/v1/adapters/{name}/versions/{version}/download", policy=READ, tags=TAGS)
    async def download_version(
        request: Request, name: str, version: str, file: str = "adapter_model.safetensors"
    ) -> Response:
        """One file of the version: adapter_model.safetensors, adapter_config.json, manifest.json or README.md, the last two
        with the evaluation as soon as there is one."""
        record, stream = await adapters.open_file(principal_of(request).project, name, version, file)
        size_bytes = stream.seek(0, os.SEEK_END)
        stream.seek(0)
        return download(stream, size_bytes, f"{record.adapter}-{record.number or record.tag}-{file}")

    @routes.post("/v1/adapters/{name}/versions/{version}/load", policy=WRITE, tags=TAGS)
    async def load_version(request: Request, name: str, version: str) -> Response:
        """Brings the version into this server's engine: into a slot where one can be had at once, else into host memory.
        Nothing is recorded; it leaves as others do."""
        return JSONResponse(shown(await adapters.load(principal_of(request).project, name, version)))

    @routes.put("/v1/adapters/{name}/versions/{version}/pin", policy=WRITE, tags=TAGS)
    async def pin_version(request: Request, name: str, version: str) -> Response:
        """Keeps the version in a slot of the engine."""
        return JSONResponse(shown(await adapters.pin(principal_of(request).project, name, version)))

    @routes.delete("/v1/adapters/{name}/versions/{version}/pin", policy=WRITE, tags=TAGS)
    async def unpin_version(request: Request, name: str, version: str) -> Response:
        return JSONResponse(shown(await adapters.unpin(principal_of(request).project, name, version)))


def _declare_aliases(routes: Routes, adapters: AdapterService) -> None:
    @routes.put("/v1/adapters/{name}/aliases/{alias}", policy=WRITE, tags=TAGS)
    async def set_alias(request: Request, name: str, alias: str, body: Annotated[AliasBody, Body()]) -> Response:
        """Compare-and-swap. 412 with the current state when somebody moved it meanwhile."""
        chosen = None if body.targets is None else [Target(one.version, one.weight) for one in body.targets]
        targets = targets_of(body.version, chosen)
        expected = _expected(request, body.expected_revision)
        return _alias(await adapters.set_alias(_who(request), name, alias, targets, expected, body.reason))

    @routes.delete("/v1/adapters/{name}/aliases/{alias}", policy=WRITE, tags=TAGS)
    async def delete_alias(request: Request, name: str, alias: str, reason: Reason = "") -> Response:
        await adapters.delete_alias(_who(request), name, alias, _expected(request, None), reason)
        return JSONResponse(wire.deleted(alias, "adapter.alias"))

    @routes.post("/v1/adapters/{name}/rollback", policy=WRITE, tags=TAGS)
    async def rollback(request: Request, name: str, body: Annotated[RollbackBody, Body()] = RollbackBody()) -> Response:  # noqa: B008
        """Back to the alias's previous targets; again goes back one further."""
        return _alias(await adapters.rollback(_who(request), name, body.alias, body.reason))

    @routes.get("/v1/adapters/{name}/history", policy=READ, tags=TAGS)
    async def history(request: Request, name: str, after: After = None, limit: Limit = 20) -> Response:
        """Moves of all aliases, newest first: who, when, from, to, why."""
        page = await adapters.history(principal_of(request).project, name, after, limit)
        return JSONResponse(wire.listing(page, wire.history))


def _who(request: Request) -> Who:
    principal = principal_of(request)
    return Who(principal.project, principal.actor)


def _alias(record: AliasRecord) -> Response:
    return JSONResponse(wire.alias(record), headers={"etag": f'"{record.revision}"'})


def _expected(request: Request, in_body: int | None) -> int | None:
    """`expected_revision`, or the same as `If-Match`. Raises BadInput when both are there and differ."""
    header = request.headers.get("if-match", "").strip().removeprefix("W/").strip('"')
    if not header:
        return in_body
    if not header.isdecimal() or in_body not in (None, int(header)):
        raise BadInput("If-Match must be the alias's revision, and the same as expected_revision.", param="if-match")
    return int(header)


def _cursor(after: str | None) -> int | None:
    if after is None:
        return None
    number = after.removeprefix(VERSION_CURSOR)
    if not number.isdecimal() or len(number) > 15:
        raise BadInput(f"No version {after[:80]!r} to continue after.", param="after")
    return int(number)
