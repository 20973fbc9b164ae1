"""/v1/models: what may be asked."""

from __future__ import annotations

from fastapi import Request
from starlette.responses import JSONResponse, Response

from ..services import wire
from ..services.adapters import Who
from ..services.models import ModelService
from .auth import Policy
from .routing import Routes, principal_of


def declare(routes: Routes, models: ModelService) -> None:
    @routes.get("/v1/models", policy=Policy.MODELS, tags=["models"])
    async def list_models(request: Request) -> Response:
        """The base model, every adapter under its alias names, and every ready version. One page."""
        return JSONResponse({"object": "list", "data": models.list(principal_of(request).project)})

    # A name may hold a slash, and Starlette decodes %2F before it routes.
    @routes.get("/v1/models/{model:path}", policy=Policy.MODELS, tags=["models"])
    async def retrieve_model(request: Request, model: str) -> Response:
        return JSONResponse(models.get(principal_of(request).project, model))

    @routes.delete("/v1/models/{model:path}", policy=Policy.ADAPTERS_WRITE, tags=["models"])
    async def delete_model(request: Request, model: str) -> Response:
        """Stops offering a version, or a whole adapter. 403 for the base model."""
        principal = principal_of(request)
        await models.delete(Who(principal.project, principal.actor), model)
        return JSONResponse(wire.deleted(model, "model"))
