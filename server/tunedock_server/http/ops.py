"""Health, metrics, documentation: for operators and load balancers."""

from __future__ import annotations

from collections.abc import Callable

from fastapi import FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import JSONResponse, Response

from .auth import Policy
from .routing import Routes


def declare(routes: Routes, app: FastAPI, not_ready: Callable[[], str | None], metrics: Callable[[], bytes]) -> None:
    """`not_ready` says in one word why this server should get no traffic, or None."""

    @routes.get("/healthz", policy=Policy.PUBLIC, tags=["operations"])
    async def healthz() -> Response:
        """The process lives. Stays 200 while the engine restarts."""
        return JSONResponse({"status": "ok"})

    @routes.get("/readyz", policy=Policy.PUBLIC, tags=["operations"])
    async def readyz() -> Response:
        """200 when requests can be answered now."""
        why = not_ready()
        return JSONResponse({"status": why or "ready"}, 503 if why else 200, {"retry-after": "2"} if why else None)

    @routes.get("/health", policy=Policy.PUBLIC, tags=["operations"], include_in_schema=False)
    async def health() -> Response:
        """vLLM's spelling of /readyz."""
        answer: Response = await readyz()
        return answer

    @routes.get("/metrics", policy=Policy.OPERATE, tags=["operations"])
    async def prometheus() -> Response:
        return Response(metrics(), media_type=CONTENT_TYPE_LATEST)

    @routes.get("/openapi.json", policy=Policy.PUBLIC, include_in_schema=False)
    async def openapi() -> Response:
        return JSONResponse(app.openapi())

    @routes.get("/docs", policy=Policy.PUBLIC, include_in_schema=False)
    async def docs() -> Response:
        page: Response = get_swagger_ui_html(openapi_url="/openapi.json", title="TuneDock")
        return page
