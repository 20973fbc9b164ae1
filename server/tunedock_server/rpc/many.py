"""Many streams over one call: everything that is there when the connection can take more goes out in one message.

Each stream is a task that puts its chunks into the one message that is being filled. All tasks that an engine step woke
have run before the call's own task takes that message and writes it, so that a step costs one write, however many streams
there are; while a write is under way the next message fills. A message that nobody takes stops the streams that would
make it grow, and vLLM then joins their tokens.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing

from tunedock_api.errors import BadInput, DeadlineExceeded, TuneDockError
from tunedock_api.v1 import inference_pb2 as pb

from ..http.errors import translate
from .guard import Call, current_call, logged, now_current
from .status import status_of

Answering = Callable[
    [pb.ChatRequest | pb.CompleteRequest, Callable[[], pb.GenerateChunk]], AsyncGenerator[pb.GenerateChunk, None]
]
MOST_PARTS = 1024  # in a message that waits to be written


class Outbox:
    """The message that is being filled."""

    def __init__(self) -> None:
        self._message = pb.StreamManyResponse()
        self._filled = asyncio.Event()
        self._taken = asyncio.Event()
        self._failure: BaseException | None = None
        self._over = False

    def part(self, stream: int) -> pb.StreamPart:
        """A new part of the message, to be filled before the caller's next await."""
        self._filled.set()
        part = self._message.parts.add()
        part.stream = stream
        return part

    @property
    def full(self) -> bool:
        return len(self._message.parts) >= MOST_PARTS

    async def room(self) -> None:
        """Returns when the message may grow."""
        while self.full:
            self._taken.clear()
            await self._taken.wait()

    def close(self, failure: BaseException | None = None) -> None:
        """Nothing more will come; with `failure`, `take` raises it once everything is taken."""
        self._over, self._failure = True, failure
        self._filled.set()

    async def take(self) -> pb.StreamManyResponse | None:
        """All that is there; None at the end."""
        await self._filled.wait()
        self._filled.clear()
        self._taken.set()
        message, self._message = self._message, pb.StreamManyResponse()
        if message.parts:
            if self._over:
                self._filled.set()
            return message
        if self._failure is not None:
            raise self._failure
        return None


class ManyStreams:
    """The streams of one call."""

    def __init__(self, answer: Answering, timeout_s: float) -> None:
        self._answer = answer
        self._timeout_s = timeout_s
        self._call = current_call()
        self._outbox = Outbox()
        self._running: dict[int, asyncio.Task[None]] = {}
        self._reading: asyncio.Task[None] | None = None

    def finish(self) -> None:
        """Takes no more requests; the call ends in good order when the streams that run have ended."""
        if self._reading is not None:
            self._reading.cancel()

    async def run(self, requests: AsyncIterator[pb.StreamManyRequest]) -> AsyncGenerator[pb.StreamManyResponse, None]:
        """Messages until the requests have ended and every stream with them; closing it ends all streams."""
        reading = self._reading = asyncio.create_task(self._read(requests))
        try:
            while (message := await self._outbox.take()) is not None:
                yield message
        finally:
            tasks = [reading, *self._running.values()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _read(self, requests: AsyncIterator[pb.StreamManyRequest]) -> None:
        try:
            async for request in requests:
                self._take(request)
                await self._outbox.room()  # whoever does not read the answers may not ask on
        except asyncio.CancelledError:  # `finish`, or the end of the call, which cancels the streams as well
            pass
        except Exception as error:  # this task's edge: the call ends with it
            self._outbox.close(error)
            return
        await asyncio.gather(*self._running.values(), return_exceptions=True)
        self._outbox.close()

    def _take(self, request: pb.StreamManyRequest) -> None:
        running = self._running.get(request.stream)
        if request.WhichOneof("action") == "cancel":
            if running is not None:
                running.cancel()
        elif running is not None:
            raise BadInput(
                f"Stream {request.stream} is still running: give every stream its own number.", param="stream"
            )
        else:
            task = self._running[request.stream] = asyncio.create_task(self._run(request))
            task.add_done_callback(lambda _: self._running.pop(request.stream))

    async def _run(self, request: pb.StreamManyRequest) -> None:
        call = now_current(Call(self._call.principal, f"{self._call.request_id}-{request.stream}", self._call.recheck))
        asked_s = request.timeout_s
        limit_s = asked_s if 0 < asked_s < self._timeout_s else self._timeout_s
        try:
            async with asyncio.timeout(limit_s):
                await self._pour(request)
        except TimeoutError:
            self._end(call, request.stream, DeadlineExceeded(f"The answer was not complete within {limit_s:g} s."))
        except Exception as error:  # this stream's edge: the others go on
            self._end(call, request.stream, translate(logged(error, call)))
        else:
            self._end(call, request.stream)

    async def _pour(self, request: pb.StreamManyRequest) -> None:
        self._call.recheck()  # the key may have been revoked since the call began
        action = request.WhichOneof("action")
        if action is None:
            raise BadInput("Say what to do: 'chat', 'complete' or 'cancel'.", param="action")
        asked = request.chat if action == "chat" else request.complete
        async with aclosing(self._answer(asked, lambda: self._outbox.part(request.stream).chunk)) as chunks:
            async for _ in chunks:
                if self._outbox.full:
                    await self._outbox.room()

    def _end(self, call: Call, stream: int, error: TuneDockError | None = None) -> None:
        end = self._outbox.part(stream).end
        end.request_id = call.request_id
        end.digest = call.trailers.get("x-tunedock-digest", "")
        if error is not None:
            end.status = status_of(error, call.request_id).SerializeToString()
