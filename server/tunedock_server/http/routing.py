"""The one route class. A route says who may call it and how large its body may be; start-up refuses one that does not.

The check runs before the body is read: FastAPI parses the body before it resolves dependencies, so a `Depends` check
would let anonymous callers make us parse.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterable
from functools import partial
from typing import Any

from fastapi import FastAPI
from fastapi.routing import APIRoute
from starlette.datastructures import FormData, Headers
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute
from starlette.types import Message, Receive, Scope, Send
from tunedock_api.errors import Internal

from .auth import Authenticator, Policy, Principal
from .errors import from_os_error, too_large

Endpoint = Callable[..., Any]
Decorator = Callable[[Endpoint], Endpoint]
Streaming = Callable[[], bool]
MAX_FORM_FILES, MAX_FORM_FIELDS, MAX_FIELD_BYTES = 4, 32, 1 << 20
LARGE_BYTES = 32 << 10  # of one piece of a body: only those of uploads are as large
PIECE_BYTES = 512 << 10
BESIDE_STREAMS_BYTES_PER_S = 50e6


class StrictRequest(Request):
    """JSON without NaN, endless nesting or lone surrogates; forms with few parts."""

    async def stream(self) -> AsyncGenerator[bytes, None]:
        """In few pieces: each that goes to a file costs a visit to a thread."""
        held = bytearray()
        async for part in super().stream():
            held += part
            if len(held) >= PIECE_BYTES:
                yield bytes(held)
                held.clear()
        yield bytes(held)

    async def json(self) -> Any:
        if not hasattr(self, "_json"):
            self._json = parse_json(await self.body())
        return self._json

    async def _get_form(
        self, *, max_files: int | float = 0, max_fields: int | float = 0, max_part_size: int = 0
    ) -> FormData:
        try:
            return await super()._get_form(
                max_files=MAX_FORM_FILES, max_fields=MAX_FORM_FIELDS, max_part_size=MAX_FIELD_BYTES
            )
        except OSError as error:
            # FastAPI would call a full disk a bad request; it lets only HTTPException through.
            raise HTTPException(from_os_error(error).kind.http_status) from error


def parse_json(raw: bytes) -> Any:
    """Raises HTTPException 400 (FastAPI lets only that one through) for what no honest client sends."""
    try:
        text = raw.decode()
        value = json.loads(text, parse_constant=_no_constant)
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError:
        raise HTTPException(400, "The JSON body is nested too deeply.") from None
    except json.JSONDecodeError as error:
        raise HTTPException(400, f"The body is not valid JSON: {error.msg} at character {error.pos}.") from None
    except UnicodeEncodeError:
        raise HTTPException(400, "The JSON body holds a lone surrogate, which no UTF-8 text can.") from None
    except ValueError as error:
        raise HTTPException(400, f"The body is not valid JSON: {str(error)[:200]}") from None
    return value


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")


class GuardedRoute(APIRoute):
    """Authenticates, caps and paces the body, then hands over. The principal is `request.state.principal`."""

    def __init__(
        self,
        path: str,
        endpoint: Endpoint,
        *,
        policy: Policy,
        max_body_bytes: int,
        authenticator: Authenticator,
        streaming: Streaming,
        **options: Any,
    ) -> None:
        self.policy = policy
        self.max_body_bytes = max_body_bytes
        self.authenticator = authenticator
        self.streaming = streaming
        super().__init__(path, endpoint, response_model=None, **options)

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()

        async def strict(request: Request) -> Response:
            return await handler(StrictRequest(request.scope, request.receive))

        return strict

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        principal = self.authenticator.check(headers.get("authorization"), self.policy)
        scope.setdefault("state", {})["principal"] = principal
        body = paced(capped(receive, headers, self.max_body_bytes), self.streaming)
        await super().handle(scope, body, send)


def capped(receive: Receive, headers: Headers, limit_bytes: int) -> Receive:
    """A `receive` that refuses a body over the limit, by its header at once, by its bytes as they come."""
    declared = headers.get("content-length", "0")
    if declared.isdecimal() and int(declared) > limit_bytes:
        raise too_large(limit_bytes)
    seen = 0

    async def limited() -> Message:
        nonlocal seen
        message = await receive()
        if message["type"] == "http.request":
            seen += len(message.get("body", b""))
            if seen > limit_bytes:
                raise HTTPException(413)
        return message

    return limited


def paced(receive: Receive, streaming: Streaming, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep) -> Receive:
    """A `receive` that leaves the loop to running streams: a large body would otherwise have it, and a processor, for itself.

    What the caller sends meanwhile waits in the socket (uvicorn reads no further than its buffer).
    """

    owed_bytes = 0

    async def slowly() -> Message:
        nonlocal owed_bytes
        message = await receive()
        if (num_bytes := len(message.get("body", b""))) >= LARGE_BYTES and streaming():
            owed_bytes += num_bytes
        if owed_bytes >= PIECE_BYTES:
            await sleep(owed_bytes / BESIDE_STREAMS_BYTES_PER_S)
            owed_bytes = 0
        return message

    return slowly


class Routes:
    """Declares routes on an app. Every method needs a policy; there is no other way to add one."""

    def __init__(self, app: FastAPI, authenticator: Authenticator, max_body_bytes: int, streaming: Streaming) -> None:
        """`streaming` says whether answers are being generated now."""
        self._app = app
        self._streaming = streaming
        self._authenticator = authenticator
        self._max_body_bytes = max_body_bytes

    def _add(
        self, method: str, path: str, policy: Policy, max_body_bytes: int | None = None, **options: Any
    ) -> Decorator:
        build = partial(
            GuardedRoute,
            policy=policy,
            max_body_bytes=max_body_bytes or self._max_body_bytes,
            authenticator=self._authenticator,
            streaming=self._streaming,
        )

        def declare(endpoint: Endpoint) -> Endpoint:
            self._app.router.routes.append(build(path, endpoint, methods=[method], **options))
            return endpoint

        return declare

    def get(self, path: str, *, policy: Policy, **options: Any) -> Decorator:
        return self._add("GET", path, policy, **options)

    def post(self, path: str, *, policy: Policy, **options: Any) -> Decorator:
        return self._add("POST", path, policy, **options)

    def put(self, path: str, *, policy: Policy, **options: Any) -> Decorator:
        return self._add("PUT", path, policy, **options)

    def delete(self, path: str, *, policy: Policy, **options: Any) -> Decorator:
        return self._add("DELETE", path, policy, **options)


def principal_of(request: Request) -> Principal:
    principal: Principal = request.state.principal
    return principal


def check_all_guarded(routes: Iterable[BaseRoute]) -> None:
    """Raises Internal when any route, however deep in a mount, could answer without a policy decision."""
    for route in routes:
        if isinstance(route, GuardedRoute):
            continue
        raise Internal(f"The route {getattr(route, 'path', route)!r} has no access policy; declare it through Routes.")
