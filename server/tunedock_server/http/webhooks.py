"""/v1/webhook_endpoints, as the openai client drives them."""

from __future__ import annotations

from typing import Annotated

from fastapi import Body, Request
from pydantic import BaseModel, Field, StrictBool, StrictStr
from starlette.responses import JSONResponse, Response
from tunedock_registry.webhook_events import EVENT_TYPES

from ..services import wire
from ..services.webhooks import WebhookService
from .auth import Policy
from .paging import After, Limit
from .routing import Routes, principal_of

Name = Annotated[StrictStr, Field(min_length=1, max_length=200)]
Events = Annotated[list[StrictStr], Field(min_length=1, max_length=32)]


class EndpointBody(BaseModel):
    name: Name
    url: StrictStr
    event_types: Events


class UpdateBody(BaseModel):
    name: Name | None = None
    url: StrictStr | None = None
    event_types: Events | None = None


class RotateBody(BaseModel):
    keep_old_secret_active_for_24_hours: StrictBool | None = None


class TestBody(BaseModel):
    event_type: StrictStr


def declare(routes: Routes, webhooks: WebhookService) -> None:
    root, policy, tags = "/v1/webhook_endpoints", Policy.WEBHOOKS, ["webhooks"]

    @routes.get("/v1/webhook_event_types", policy=policy, tags=tags)
    async def list_event_types() -> Response:
        return JSONResponse({"object": "list", "data": list(EVENT_TYPES)})

    @routes.post(root, policy=policy, tags=tags)
    async def create_endpoint(request: Request, body: Annotated[EndpointBody, Body()]) -> Response:
        """The answer is the only place where the signing secret is shown."""
        made = await webhooks.create(principal_of(request).project, body.name, body.url, body.event_types)
        return JSONResponse(wire.endpoint(made.endpoint) | {"signing_secret": made.secret})

    @routes.get(root, policy=policy, tags=tags)
    async def list_endpoints(request: Request, after: After = None, limit: Limit = 20) -> Response:
        page = await webhooks.list(principal_of(request).project, after, limit)
        return JSONResponse(wire.listing(page, wire.endpoint))

    @routes.get(f"{root}/{{endpoint_id}}", policy=policy, tags=tags)
    async def retrieve_endpoint(request: Request, endpoint_id: str) -> Response:
        return JSONResponse(wire.endpoint(await webhooks.get(principal_of(request).project, endpoint_id)))

    @routes.post(f"{root}/{{endpoint_id}}", policy=policy, tags=tags)
    async def update_endpoint(request: Request, endpoint_id: str, body: Annotated[UpdateBody, Body()]) -> Response:
        """`event_types` replaces the whole list."""
        project = principal_of(request).project
        return JSONResponse(
            wire.endpoint(await webhooks.update(project, endpoint_id, body.name, body.url, body.event_types))
        )

    @routes.delete(f"{root}/{{endpoint_id}}", policy=policy, tags=tags)
    async def delete_endpoint(request: Request, endpoint_id: str) -> Response:
        await webhooks.delete(principal_of(request).project, endpoint_id)
        return JSONResponse(wire.deleted(endpoint_id, "webhook_endpoint.deleted"))

    @routes.post(f"{root}/{{endpoint_id}}/rotate_secret", policy=policy, tags=tags)
    async def rotate_secret(request: Request, endpoint_id: str, body: Annotated[RotateBody, Body()]) -> Response:
        """With `keep_old_secret_active_for_24_hours` deliveries are signed with both for a day."""
        keep = bool(body.keep_old_secret_active_for_24_hours)
        made = await webhooks.rotate(principal_of(request).project, endpoint_id, keep)
        return JSONResponse(wire.endpoint(made.endpoint) | {"signing_secret": made.secret})

    @routes.post(f"{root}/{{endpoint_id}}/test", policy=policy, tags=tags)
    async def test_endpoint(request: Request, endpoint_id: str, body: Annotated[TestBody, Body()]) -> Response:
        """Sends a signed example now and says what the endpoint answered."""
        status = await webhooks.test(principal_of(request).project, endpoint_id, body.event_type)
        return JSONResponse(
            {
                "object": "webhook_endpoint.test",
                "event_type": body.event_type,
                "status_code": status or 0,
                "success": status is not None and 200 <= status < 300,
                "webhook_endpoint_id": endpoint_id,
            }
        )
