"""The one interceptor: who is calling, is the message well-formed, what becomes of a failure.

It takes the raw bytes and parses them itself, after authentication: grpc answers a message that does not parse with
INTERNAL, and it would parse for callers without a key.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing, asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from inspect import isawaitable
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from tunedock_api.errors import BadInput, DeadlineExceeded, PermissionDenied, TuneDockError

from ..http.auth import Authenticator, Policy, Principal
from ..http.errors import translate
from .status import STATUS_KEY, grpc_code, message_of, status_of

log = logging.getLogger(__name__)

Context = grpc.aio.ServicerContext[Any, Any]
Handler = Any  # grpc types its handlers for the synchronous server only


@dataclass
class Call:
    """The call that runs: its caller, its id, and what goes out with its end as metadata.

    `recheck` raises when the caller would not be let in any more; a call that lives long asks it before new work.
    """

    principal: Principal
    request_id: str
    recheck: Callable[[], object]
    trailers: dict[str, str] = field(default_factory=dict)

    def metadata(self) -> tuple[tuple[str, str], ...]:
        return (("x-request-id", self.request_id), *self.trailers.items())


_current: ContextVar[Call] = ContextVar("call")


def current_call() -> Call:
    """The call whose handler is running."""
    return _current.get()


def now_current(call: Call) -> Call:
    """`call` is the current one for the task that asks, and for those that it starts."""
    _current.set(call)
    return call


def logged(error: Exception, call: Call) -> Exception:
    """Failures of ours go to the log with their cause; callers' mistakes do not."""
    if not isinstance(error, TuneDockError):
        log.exception("request %s failed", call.request_id, exc_info=error)
    return error


_ENDLESS = "Watch", "StreamMany"


class Guard(grpc.aio.ServerInterceptor):
    """`policies` names every method that may be called; one that is not named is refused.

    `timeout_s` bounds unary answers and streams of tokens alike; a caller's shorter deadline wins.
    """

    def __init__(self, authenticator: Authenticator, policies: Mapping[str, Policy], timeout_s: float) -> None:
        self._authenticator = authenticator
        self._policies = policies
        self._timeout_s = timeout_s

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        handler = await continuation(handler_call_details)
        if handler is None:  # grpc answers UNIMPLEMENTED
            return handler
        call = Call(Principal(), f"req_{secrets.token_hex(12)}", lambda: self._admit(handler_call_details))
        try:
            call.principal = self._admit(handler_call_details)
        except TuneDockError as error:
            return _rebuilt(handler, _Refusal(call, error))
        return _rebuilt(handler, _Edge(call, handler, self._limit_s(handler_call_details.method)))

    def _admit(self, details: grpc.HandlerCallDetails) -> Principal:
        policy = self._policies.get(str(details.method))
        if policy is None:
            raise PermissionDenied("This method is not open to callers.")
        metadata = dict(details.invocation_metadata or ())
        key = metadata.get("authorization")
        return self._authenticator.check(key if isinstance(key, str) else None, policy)

    def _limit_s(self, method: str) -> float | None:
        """Watching has no end of its own; a call of many streams bounds each of them."""
        return None if method.rpartition("/")[2].startswith(_ENDLESS) else self._timeout_s


class _Edge:
    """A handler's four shapes, with parsing, limits and errors around them."""

    def __init__(self, call: Call, handler: Handler, limit_s: float | None) -> None:
        self._call = call
        self._handler = handler
        self._limit_s = limit_s

    async def unary_unary(self, raw: bytes, context: Context) -> Any:
        async with self._guarded(context):
            return await self._handler.unary_unary(self._parse(raw), context)

    async def unary_stream(self, raw: bytes, context: Context) -> AsyncIterator[Any]:
        async with self._guarded(context), _written(self._handler.unary_stream(self._parse(raw), context)) as parts:
            async for part in parts:
                yield part

    async def stream_unary(self, raws: AsyncIterator[bytes], context: Context) -> Any:
        async with self._guarded(context):
            return await self._handler.stream_unary(self._parsed(raws), context)

    async def stream_stream(self, raws: AsyncIterator[bytes], context: Context) -> AsyncIterator[Any]:
        async with self._guarded(context), _written(self._handler.stream_stream(self._parsed(raws), context)) as parts:
            async for part in parts:
                yield part

    def _parse(self, raw: bytes) -> Any:
        try:
            return self._handler.request_deserializer(raw)
        except DecodeError as error:
            raise BadInput(
                "The message is not what this method takes: generate your client from our protos."
            ) from error

    async def _parsed(self, raws: AsyncIterator[bytes]) -> AsyncIterator[Any]:
        async for raw in raws:
            yield self._parse(raw)

    @asynccontextmanager
    async def _guarded(self, context: Context) -> AsyncIterator[None]:
        _current.set(self._call)
        try:
            async with asyncio.timeout(self._limit_s):
                yield
        except TimeoutError:
            await _abort(context, self._call, DeadlineExceeded("The request ran longer than the server allows."))
        except grpc.aio.AbortError:
            raise
        except Exception as error:
            await _abort(context, self._call, translate(logged(error, self._call)))
        context.set_trailing_metadata(self._call.metadata())


@asynccontextmanager
async def _written(answer: Any) -> AsyncIterator[AsyncIterator[Any]]:
    """What is still to be written of a handler's answer: nothing when it is a coroutine that writes by itself."""
    if isawaitable(answer):
        await answer
        yield _nothing()
        return
    async with aclosing(answer):
        yield answer


async def _nothing() -> AsyncIterator[Any]:
    for part in list[Any]():
        yield part


class _Refusal:
    """Answers every shape with one error, without reading a message."""

    def __init__(self, call: Call, error: TuneDockError) -> None:
        self._call = call
        self._error = error

    async def unary_unary(self, raw: bytes, context: Context) -> Any:
        await _abort(context, self._call, self._error)

    async def unary_stream(self, raw: bytes, context: Context) -> AsyncIterator[Any]:
        await _abort(context, self._call, self._error)
        yield

    async def stream_unary(self, raws: AsyncIterator[bytes], context: Context) -> Any:
        await _abort(context, self._call, self._error)

    async def stream_stream(self, raws: AsyncIterator[bytes], context: Context) -> AsyncIterator[Any]:
        await _abort(context, self._call, self._error)
        yield


async def _abort(context: Context, call: Call, error: TuneDockError) -> None:
    status = (STATUS_KEY, status_of(error, call.request_id).SerializeToString())
    await context.abort(grpc_code(error), message_of(error), (*call.metadata(), status))


def _rebuilt(handler: Handler, edge: _Edge | _Refusal) -> Handler:
    """The same method on raw bytes, run by `edge`."""
    out = handler.response_serializer
    if handler.request_streaming and handler.response_streaming:
        return grpc.stream_stream_rpc_method_handler(edge.stream_stream, None, out)
    if handler.request_streaming:
        return grpc.stream_unary_rpc_method_handler(edge.stream_unary, None, out)
    if handler.response_streaming:
        return grpc.unary_stream_rpc_method_handler(edge.unary_stream, None, out)
    return grpc.unary_unary_rpc_method_handler(edge.unary_unary, None, out)
