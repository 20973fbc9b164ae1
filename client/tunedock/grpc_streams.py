"""All streams of a client over one gRPC call, because a message costs more than the tokens in it.

The server puts what one engine step made for all streams into one message; here it comes apart again. The call begins with
the first stream and is begun again after it broke.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress
from typing import Any

import grpc
from tunedock_api.v1 import inference_pb2 as pb

Part = pb.StreamPart | grpc.aio.AioRpcError
Asked = pb.ChatRequest | pb.CompleteRequest


class Streams:
    """`begin` begins a StreamMany call. Belongs to one event loop."""

    def __init__(self, begin: Callable[[], Any]) -> None:
        self._begin = begin
        self._numbers = itertools.count(1)
        self._open: _Call | None = None

    async def stream(self, asked: Asked, timeout_s: float) -> AsyncGenerator[pb.StreamPart, None]:
        """The parts of one answer up to its end. Raises AioRpcError when the call breaks. Leaving early frees the sequence."""
        if self._open is None or self._open.over:
            self._open = _Call(self._begin())
        call, number, over = self._open, next(self._numbers), False
        parts = await call.ask(number, _request(number, asked, timeout_s))
        try:
            while not over:
                part = await parts.get()
                if isinstance(part, grpc.aio.AioRpcError):
                    over = True
                    raise part
                over = part.HasField("end")
                yield part
        finally:
            await call.leave(number, cancel=not over)

    async def aclose(self) -> None:
        if self._open is not None:
            await self._open.close()


class _Call:
    """One call and the queues of its running streams. grpc takes one write at a time."""

    def __init__(self, call: Any) -> None:
        self._call = call
        self._queues: dict[int, asyncio.Queue[Part]] = {}
        self._writing = asyncio.Lock()
        self._reading = asyncio.create_task(self._read())

    @property
    def over(self) -> bool:
        return self._reading.done()

    async def ask(self, number: int, request: pb.StreamManyRequest) -> asyncio.Queue[Part]:
        queue = self._queues[number] = asyncio.Queue()
        await self._write(request)
        return queue

    async def leave(self, number: int, *, cancel: bool) -> None:
        self._queues.pop(number, None)
        if cancel:
            await self._write(pb.StreamManyRequest(stream=number, cancel=True))

    async def close(self) -> None:
        self._call.cancel()
        await asyncio.gather(self._reading, return_exceptions=True)

    async def _write(self, request: pb.StreamManyRequest) -> None:
        """A call that is over says why through `_read`, to everybody who waits."""
        async with self._writing:
            if not self._call.done():
                with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
                    await self._call.write(request)

    async def _read(self) -> None:
        failure = _broken("the server ended the call")
        try:
            async for message in self._call:
                for part in message.parts:
                    if part.stream in self._queues:
                        self._queues[part.stream].put_nowait(part)
        except grpc.aio.AioRpcError as error:
            failure = error
        except asyncio.CancelledError:
            failure = _broken("this client was closed")
        for queue in self._queues.values():
            queue.put_nowait(failure)


def _request(number: int, asked: Asked, timeout_s: float) -> pb.StreamManyRequest:
    if isinstance(asked, pb.ChatRequest):
        return pb.StreamManyRequest(stream=number, chat=asked, timeout_s=timeout_s)
    return pb.StreamManyRequest(stream=number, complete=asked, timeout_s=timeout_s)


def _broken(why: str) -> grpc.aio.AioRpcError:
    nothing = grpc.aio.Metadata()
    return grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, nothing, nothing, why)
