"""/v1/uploads: create, parts, complete, cancel."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import Body, File, Request, UploadFile
from pydantic import BaseModel, StrictInt, StrictStr
from pydantic import Field as PydanticField
from starlette.responses import JSONResponse, Response

from ..services import wire
from ..services.uploads import NewUpload, UploadService
from .attempts import attempt_of
from .auth import Policy
from .files import MULTIPART_OVERHEAD_BYTES
from .routing import Routes, principal_of

MAX_PART_BYTES = 64 << 20


class ExpiryBody(BaseModel):
    anchor: Literal["created_at"]
    seconds: StrictInt


class UploadBody(BaseModel):
    bytes: StrictInt
    filename: StrictStr
    mime_type: StrictStr = PydanticField(max_length=255)
    purpose: StrictStr
    expires_after: ExpiryBody | None = None


class CompleteBody(BaseModel):
    part_ids: list[StrictStr] = PydanticField(min_length=1, max_length=10_000)
    md5: StrictStr | None = None


def declare(routes: Routes, uploads: UploadService) -> None:
    policy, tags = Policy.FILES, ["files"]

    @routes.post("/v1/uploads", policy=policy, tags=tags)
    async def create_upload(request: Request, body: Annotated[UploadBody, Body()]) -> Response:
        """Announces a file that comes in parts, within an hour."""
        expires = body.expires_after.seconds if body.expires_after else None
        new = NewUpload(body.filename, body.purpose, body.bytes, body.mime_type, expires)
        attempt = attempt_of(request, await request.body())
        return JSONResponse(wire.upload(await uploads.create(principal_of(request).project, new, attempt)))

    @routes.post(
        "/v1/uploads/{upload_id}/parts",
        policy=policy,
        tags=tags,
        max_body_bytes=MAX_PART_BYTES + MULTIPART_OVERHEAD_BYTES,
    )
    async def add_part(request: Request, upload_id: str, data: Annotated[UploadFile, File()]) -> Response:
        """At most 64 MiB; in any order, also in parallel."""
        project = principal_of(request).project
        part = await uploads.add_part(project, upload_id, data.file, attempt_of(request))
        return JSONResponse(wire.part(part))

    @routes.post("/v1/uploads/{upload_id}/complete", policy=policy, tags=tags)
    async def complete_upload(request: Request, upload_id: str, body: Annotated[CompleteBody, Body()]) -> Response:
        """Joins the parts in the order of `part_ids`."""
        done = await uploads.complete(principal_of(request).project, upload_id, body.part_ids, body.md5)
        return JSONResponse(wire.upload(done))

    @routes.post("/v1/uploads/{upload_id}/cancel", policy=policy, tags=tags)
    async def cancel_upload(request: Request, upload_id: str) -> Response:
        return JSONResponse(wire.upload(await uploads.cancel(principal_of(request).project, upload_id)))
