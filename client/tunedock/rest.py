"""REST, through openai's own client: its connection pool, retries, multipart and server-sent events.

openai takes half a second to import, so that happens with the first call and never with `import tunedock`.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any, BinaryIO
from urllib.parse import quote

from tunedock_api.errors import DeadlineExceeded, Unavailable

from .operations import Json, Operation
from .settings import NO_KEY, Connection
from .wire_errors import from_body

if TYPE_CHECKING:
    from openai import APIStatusError, AsyncOpenAI
    from openai._types import RequestOptions

_CHUNK_BYTES = 1 << 20


class RestTransport:
    """The transport behind `TuneDock` and `AsyncTuneDock` unless a gRPC target is given."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    @cached_property
    def _openai(self) -> AsyncOpenAI:
        from openai import AsyncOpenAI

        to = self._connection
        return AsyncOpenAI(
            base_url=to.base_url, api_key=to.api_key or NO_KEY, timeout=to.timeout_s, max_retries=to.max_retries
        )

    async def call(
        self,
        operation: Operation,
        path: Mapping[str, Any] | None = None,
        query: Mapping[str, Any] | None = None,
        body: Json | None = None,
    ) -> Json:
        url, options = operation.url(path or {}), _options(operation, query)
        with self._translated():
            match operation.method:
                case "GET":
                    answer = await self._openai.get(url, cast_to=object, options=options)
                case "POST":
                    answer = await self._openai.post(url, cast_to=object, body=body, options=options)
                case "PUT":
                    answer = await self._openai.put(url, cast_to=object, body=body, options=options)
                case "DELETE":
                    answer = await self._openai.delete(url, cast_to=object, options=options)
        return _json_object(answer, self._connection.base_url)

    async def stream(self, operation: Operation, body: Json) -> AsyncIterator[Json]:
        from openai import AsyncStream

        with self._translated():
            events = await self._openai.post(
                operation.path,
                cast_to=object,
                body={**body, "stream": True},
                stream=True,
                stream_cls=AsyncStream[object],
            )
            async with events:
                async for event in events:
                    yield _json_object(event, self._connection.base_url)

    async def upload(self, filename: str, stream: BinaryIO, purpose: str) -> Json:
        with self._translated():
            return await self._multipart("/files", {"purpose": purpose}, {"file": (filename, stream)})

    async def publish(self, name: str, files: Mapping[str, BinaryIO]) -> Json:
        parts = {part: (part, stream) for part, stream in files.items()}
        with self._translated():
            return await self._multipart(f"/adapters/{quote(name)}/versions", {}, parts)

    async def _multipart(self, url: str, body: Json, files: Mapping[str, tuple[str, BinaryIO]]) -> Json:
        headers = {"Content-Type": "multipart/form-data", **_idempotency_header()}
        answer = await self._openai.post(
            url, cast_to=object, body=body, files=dict(files), options={"headers": headers}
        )
        return _json_object(answer, self._connection.base_url)

    async def download(self, operation: Operation, path: Mapping[str, Any], file: str) -> AsyncIterator[bytes]:
        """Yields the bytes as they arrive; nothing is held in memory."""
        import httpx2

        to = self._connection
        headers = {"Authorization": f"Bearer {to.api_key or NO_KEY}"}
        params = {"file": file} if file else {}
        try:
            async with (
                httpx2.AsyncClient(timeout=to.timeout_s, follow_redirects=True) as client,
                client.stream("GET", to.base_url + operation.url(path), headers=headers, params=params) as response,
            ):
                if response.is_error:
                    raise from_body(response.status_code, _error_of(await response.aread()))
                async for chunk in response.aiter_bytes(_CHUNK_BYTES):
                    yield chunk
        except httpx2.TimeoutException as error:
            raise self._too_late() from error
        except httpx2.TransportError as error:
            raise self._unreachable() from error

    async def aclose(self) -> None:
        if "_openai" in self.__dict__:
            await self._openai.close()

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """Turns openai's exceptions into ours."""
        import openai

        try:
            yield
        except openai.APIStatusError as error:
            raise from_body(error.status_code, error.body, _retry_after_s(error)) from error
        except openai.APITimeoutError as error:
            raise self._too_late() from error
        except openai.APIConnectionError as error:
            raise self._unreachable() from error
        except openai.APIError as error:
            raise from_body(500, error.body) from error

    def _too_late(self) -> DeadlineExceeded:
        return DeadlineExceeded(f"no answer from {self._connection.base_url} within {self._connection.timeout_s:g} s.")

    def _unreachable(self) -> Unavailable:
        return Unavailable(
            f"cannot reach {self._connection.base_url}: start a server with `tunedock serve`, or set TUNEDOCK_BASE_URL "
            "to where one runs."
        )


def _idempotency_header() -> dict[str, str]:
    return {"Idempotency-Key": uuid.uuid4().hex}


def _options(operation: Operation, query: Mapping[str, Any] | None) -> RequestOptions:
    options: RequestOptions = {"params": {key: value for key, value in (query or {}).items() if value is not None}}
    if operation.creates:
        options["headers"] = _idempotency_header()
    if not operation.repeatable:
        options["max_retries"] = 0
    return options


def _retry_after_s(error: APIStatusError) -> float | None:
    try:
        return float(error.response.headers.get("retry-after", ""))
    except ValueError:  # absent, or an HTTP date
        return None


def _json_object(answer: object, base_url: str) -> Json:
    if isinstance(answer, dict):
        return answer
    raise Unavailable(f"{base_url} did not answer with JSON: is a TuneDock server listening there?")


def _error_of(body: bytes) -> object:
    """The value of `error` in an error body; None when a proxy answered something else."""
    try:
        parsed = json.loads(body)
    except ValueError:
        return None
    return parsed.get("error") if isinstance(parsed, dict) else None
