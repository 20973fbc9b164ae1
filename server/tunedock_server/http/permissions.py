"""/v1/fine_tuning/checkpoints/{checkpoint}/permissions: lending a checkpoint to other projects."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Annotated, Literal

from fastapi import Body, Query, Request
from pydantic import BaseModel, Field, StrictStr
from starlette.responses import JSONResponse, Response
from tunedock_registry.permissions import Permissions
from tunedock_registry.records import Order, Page

from ..services import wire
from .auth import Policy
from .paging import After, Limit
from .routing import Routes, principal_of

LongOrder = Literal["ascending", "descending"]
_SHORT: dict[str, Order] = {"ascending": "asc", "descending": "desc"}


class PermissionBody(BaseModel):
    project_ids: list[StrictStr] = Field(min_length=1, max_length=100)


def declare(routes: Routes, permissions: Permissions, changed: Callable[[], Awaitable[None]]) -> None:
    """`changed` makes this server see a new permission at once."""
    # A checkpoint's name may hold what a path segment may not, and Starlette decodes before it routes.
    root, policy, tags = "/v1/fine_tuning/checkpoints/{checkpoint:path}/permissions", Policy.JOBS, ["fine-tuning"]

    @routes.post(root, policy=policy, tags=tags)
    async def create_permissions(
        request: Request, checkpoint: str, body: Annotated[PermissionBody, Body()]
    ) -> Response:
        """Lets other projects use the checkpoint as a model."""
        project = principal_of(request).project
        made = await asyncio.to_thread(permissions.create, project, checkpoint, body.project_ids)
        await changed()
        return JSONResponse(wire.listing(Page(list(made), False), wire.permission))

    @routes.get(root, policy=policy, tags=tags)
    async def list_permissions(
        request: Request,
        checkpoint: str,
        after: After = None,
        limit: Limit = 10,
        order: Annotated[LongOrder, Query()] = "descending",
        project_id: str | None = None,
    ) -> Response:
        page = await asyncio.to_thread(
            permissions.list, principal_of(request).project, checkpoint, after, limit, _SHORT[order], project_id
        )
        return JSONResponse(wire.listing(page, wire.permission))

    @routes.delete(f"{root}/{{permission_id}}", policy=policy, tags=tags)
    async def delete_permission(request: Request, checkpoint: str, permission_id: str) -> Response:
        await asyncio.to_thread(permissions.delete, principal_of(request).project, checkpoint, permission_id)
        await changed()
        return JSONResponse(wire.deleted(permission_id, "checkpoint.permission"))
