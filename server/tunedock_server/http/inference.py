"""POST /v1/chat/completions, /v1/completions and /v1/responses."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Annotated, Any

from fastapi import Body, Request
from starlette.responses import JSONResponse, Response
from tunedock_api.errors import BadInput, DeadlineExceeded

from ..services.inference import Answer, Inference
from .auth import Policy
from .routing import Routes, principal_of
from .streaming import SseResponse, until_disconnect

RequestBody = Annotated[dict[str, Any], Body()]
Ask = Callable[[str, Any, str], Coroutine[Any, Any, Answer[bytes]]]


def declare(routes: Routes, inference: Inference, *, request_timeout_s: float, write_timeout_s: float) -> None:
    async def respond(request: Request, body: dict[str, Any], ask: Ask) -> Response:
        timeout_s = min(request_timeout_s, _asked_timeout_s(request))
        deadline = time.monotonic() + timeout_s
        work = ask(principal_of(request).project, body, request.state.request_id)
        try:
            async with asyncio.timeout(timeout_s):
                answer = await until_disconnect(request.receive, work)
        except TimeoutError:
            raise DeadlineExceeded(f"The request ran longer than the {timeout_s:g} s that it had.") from None
        headers = _version_headers(answer)
        if answer.stream is None:
            return JSONResponse(answer.body, headers=headers)
        return SseResponse(answer.stream, headers, write_timeout_s=write_timeout_s, deadline=deadline)

    @routes.post("/v1/chat/completions", policy=Policy.INFERENCE, tags=["inference"])
    async def create_chat_completion(request: Request, body: RequestBody) -> Response:
        """OpenAI chat completions. `model`: the base model, `name`, `name@7`, `name@alias` or a checkpoint."""
        return await respond(request, body, inference.chat)

    @routes.post("/v1/completions", policy=Policy.INFERENCE, tags=["inference"])
    async def create_completion(request: Request, body: RequestBody) -> Response:
        """OpenAI text completions, with `echo` and `logprobs`."""
        return await respond(request, body, inference.complete)

    @routes.post("/v1/responses", policy=Policy.INFERENCE, tags=["inference"])
    async def create_response(request: Request, body: RequestBody) -> Response:
        """OpenAI responses without a store: `input` is the whole conversation, `tools` are functions of the caller."""
        return await respond(request, body, inference.respond)


def _version_headers(answer: Answer[bytes]) -> dict[str, str]:
    headers = {"x-tunedock-version": answer.pinned.public}
    return headers | ({"x-tunedock-digest": answer.pinned.digest} if answer.pinned.digest else {})


def _asked_timeout_s(request: Request) -> float:
    """The caller's own limit, from the header X-Request-Timeout in seconds."""
    text = request.headers.get("x-request-timeout")
    if text is None:
        return float("inf")
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise BadInput("X-Request-Timeout must be a number of seconds above 0.", param="x-request-timeout")
    return value
