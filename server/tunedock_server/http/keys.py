"""/v1/keys: API keys of projects. Only an admin key may ask."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Annotated

from fastapi import Body, Query, Request
from pydantic import Field, StrictInt, StrictStr
from starlette.responses import JSONResponse, Response
from tunedock_api.errors import BadInput
from tunedock_registry.keys import Keys

from ..services import wire
from .adapters import Strict
from .auth import Policy
from .paging import After, Limit
from .routing import Routes, principal_of

Project = Annotated[str | None, Query(max_length=63)]


class KeyBody(Strict):
    """`scopes`: names of policies such as `inference` or `adapters:read`; `admin` means all of them."""

    name: StrictStr = Field(min_length=1, max_length=200)
    scopes: list[StrictStr] = Field(min_length=1, max_length=len(Policy))
    project: StrictStr | None = None
    expires_after_s: StrictInt | None = Field(default=None, ge=1)


def declare(routes: Routes, keys: Keys, changed: Callable[[], Awaitable[None]]) -> None:
    """`changed` makes this server see a new or revoked key at once."""
    policy, tags = Policy.ADMIN, ["keys"]

    @routes.post("/v1/keys", policy=policy, tags=tags)
    async def create_key(request: Request, body: Annotated[KeyBody, Body()]) -> Response:
        """The answer is the only place where the key is shown."""
        for index, scope in enumerate(body.scopes):
            if scope not in set(Policy) - {Policy.PUBLIC}:
                known = ", ".join(sorted(set(Policy) - {Policy.PUBLIC}))
                raise BadInput(f"Unknown scope {scope[:40]!r}: use {known}.", param=f"scopes.{index}")
        project = body.project or principal_of(request).project
        made = await asyncio.to_thread(
            keys.create, project, body.name, body.scopes, expires_after_s=body.expires_after_s
        )
        await changed()
        return JSONResponse(wire.key(made.record) | {"key": made.secret})

    @routes.get("/v1/keys", policy=policy, tags=tags)
    async def list_keys(request: Request, after: After = None, limit: Limit = 20, project: Project = None) -> Response:
        """Newest first, revoked ones too. Never the keys themselves."""
        of = project or principal_of(request).project
        return JSONResponse(wire.listing(await asyncio.to_thread(keys.list, of, after, limit), wire.key))

    @routes.delete("/v1/keys/{key_id}", policy=policy, tags=tags)
    async def revoke_key(request: Request, key_id: str, project: Project = None) -> Response:
        """Effective within a second on every server."""
        record = await asyncio.to_thread(keys.revoke, project or principal_of(request).project, key_id)
        await changed()
        return JSONResponse(wire.deleted(record.id, "api_key"))
