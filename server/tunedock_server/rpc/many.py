"""Many streams over one call: everything that is there when the connection can take more goes out in one message.

The engine's task puts the tokens of all streams straight into the one message that is being filled. The call's own task
takes that message and writes it, so that a step costs one write and wakes one task, however many streams there are; while a
write is under way the next message fills. A message that nobody takes stops the streams that would make it grow, and vLLM
then joins their tokens.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

from tunedock_api.errors import BadInput, DeadlineExceeded, TuneDockError
from tunedock_api.v1 import inference_pb2 as pb

from ..http.errors import translate
from ..pool import Full, Take
from .guard import Call, current_call, logged, now_current
from .status import status_of

Answering = Callable[
    [pb.ChatRequest | pb.CompleteRequest, Callable[[], pb.GenerateChunk], Take[pb.GenerateChunk]], Awaitable[None]
]
Write = Callable[[pb.StreamManyResponse], Awaitable[None]]
MOST_PARTS = 1024  # in a message that waits to be written


class Outbox:
    """The message that is being filled."""

    def __init__(self) -> None:
        self._message = pb.StreamManyResponse()
        self._num_parts = 0
        self._filled = asyncio.Event()
        self._taken = asyncio.Event()
        self._failure: BaseException | None = None
        self._over = False

    def part(self, stream: int) -> pb.StreamPart:
        """A new part of the message, to be filled before the caller's next await."""
        if not self._num_parts:
            self._filled.set()
        self._num_parts += 1
        part = self._message.parts.add()
        part.stream = stream
        return part

    def full(self) -> Full:
        return None if self._num_parts < MOST_PARTS else self._room

    async def _room(self) -> None:
        while self._num_parts >= MOST_PARTS:
            self._taken.clear()
            await self._taken.wait()

    def close(self, failure: BaseException | None = None) -> None:
        """Nothing more will come; with `failure`, `take` raises it once everything is taken."""
        self._over, self._failure = True, failure
        self._filled.set()

    async def take(self) -> pb.StreamManyResponse | None:
        """All that is there; None at the end."""
        await self._filled.wait()
        if not self._num_parts:
            if self._failure is not None:
                raise self._failure
            return None
        message, self._message, self._num_parts = self._message, pb.StreamManyResponse(), 0
        self._taken.set()
        if not self._over:
            self._filled.clear()
        return message


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

    async def run(self, requests: AsyncIterator[pb.StreamManyRequest], write: Write) -> None:
        """Writes until the requests have ended and every stream with them; cancelling it ends all streams."""
        reading = self._reading = asyncio.create_task(self._read(requests))
        try:
            while (message := await self._outbox.take()) is not None:
                await write(message)
        finally:
            tasks = [reading, *self._running.values()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _read(self, requests: AsyncIterator[pb.StreamManyRequest]) -> None:
        try:
            async for request in requests:
                self._take(request)
                if (full := self._outbox.full()) is not None:  # whoever does not read the answers may not ask on
                    await full()
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
        outbox, stream = self._outbox, request.stream
        await self._answer(asked, lambda: outbox.part(stream).chunk, lambda _: outbox.full())

    def _end(self, call: Call, stream: int, error: TuneDockError | None = None) -> None:
        end = self._outbox.part(stream).end
        end.request_id = call.request_id
        end.digest = call.trailers.get("x-tunedock-digest", "")
        if error is not None:
            end.status = status_of(error, call.request_id).SerializeToString()
