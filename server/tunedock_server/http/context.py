"""The outermost layer: gives every request an id, every answer that id, and every failure a body. Pure ASGI, because
`BaseHTTPMiddleware` would hide a client's disconnect from the handlers."""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .errors import error_response, translate

log = logging.getLogger(__name__)

Observe = Callable[[str, str, int, float], None]  # route template, method, status, seconds


class RequestContext:
    """Wraps the whole app. `observe` gets each finished request with labels from closed sets only."""

    def __init__(self, app: ASGIApp, observe: Observe) -> None:
        self._app = app
        self._observe = observe

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope.setdefault("state", {})["request_id"] = request_id = f"req_{secrets.token_hex(12)}"
        status, started = 0, time.perf_counter()

        async def tagged(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        try:
            await self._app(scope, receive, tagged)
        except Exception as error:
            log.exception("request %s failed", request_id)
            if not status:
                await error_response(translate(error))(scope, receive, tagged)
        finally:
            self._observe(*_labels(scope), status, time.perf_counter() - started)


def _labels(scope: Scope) -> tuple[str, str]:
    """Route template and method; a path that nobody declared and a method that nobody knows share one label each."""
    route = scope.get("route")
    if route is None:
        return "unmatched", "other"
    method = scope["method"] if scope["method"] in (route.methods or ()) else "other"
    return str(route.path), str(method)
