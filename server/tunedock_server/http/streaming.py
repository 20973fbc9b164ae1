"""Answers that may take long: stop working when the client has gone, and never leave a lease behind."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Coroutine, Mapping
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Scope, Send
from tunedock_api.errors import DeadlineExceeded, TuneDockError

from ..leases import LeasedStream

T = TypeVar("T")


async def until_disconnect(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is cancelled when the client goes away. Raises ClientDisconnect then."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientDisconnect
    finally:
        await _end(task, gone)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _end(*tasks: asyncio.Future[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


class SseResponse(Response):
    """Server-sent events from a leased stream, which is closed whatever happens, even if it was never iterated.

    A reader that takes nothing for `write_timeout_s` is dropped; at `deadline` (monotonic) the answer ends with an error.
    """

    media_type = "text/event-stream"

    def __init__(
        self, stream: LeasedStream[bytes], headers: Mapping[str, str], *, write_timeout_s: float, deadline: float
    ) -> None:
        super().__init__(headers={**headers, "cache-control": "no-cache", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._stream = stream
        self._write_timeout_s = write_timeout_s
        self._deadline = deadline
        self._writing_since: float | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        pump = asyncio.ensure_future(self._pump(send))
        gone = asyncio.ensure_future(_disconnected(receive))
        watch = asyncio.ensure_future(self._stalled())
        try:
            await asyncio.wait({pump, gone, watch}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            try:
                await _end(pump, gone, watch)
            finally:
                await self._stream.aclose()

    async def _pump(self, send: Send) -> None:
        await self._write(send, {"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        error = await self._copy(send)
        if error is not None:
            await self._write(send, _chunk(f"data: {json.dumps(error.body())}\n\n".encode()))
        await self._write(send, {"type": "http.response.body", "body": b"", "more_body": False})

    async def _copy(self, send: Send) -> TuneDockError | None:
        """Sends every chunk. Returns the error that ended the answer early: headers are gone, so it becomes an event."""
        try:
            async with asyncio.timeout(max(0.0, self._deadline - time.monotonic())):
                async for chunk in self._stream:
                    await self._write(send, _chunk(chunk))
        except TuneDockError as error:
            return error
        except TimeoutError:
            return DeadlineExceeded("The request ran longer than this server allows.")
        return None

    async def _write(self, send: Send, message: dict[str, Any]) -> None:
        self._writing_since = time.monotonic()
        await send(message)
        self._writing_since = None

    async def _stalled(self) -> None:
        """Returns when one write has taken too long. Looks now and then: a timer for every write costs as much as it."""
        while True:
            since = self._writing_since or time.monotonic()
            left_s = since + self._write_timeout_s - time.monotonic()
            if left_s <= 0:
                return
            await asyncio.sleep(left_s)


def _chunk(body: bytes) -> dict[str, Any]:
    return {"type": "http.response.body", "body": body, "more_body": True}
