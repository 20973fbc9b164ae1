"""One request's life: resolve, lease, get the version into the engine, generate, give everything back.

Transport-free: HTTP and gRPC both stand on this. An answer in parts is a `LeasedStream`; whoever gets one must close it.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar, cast

from tunedock_api.errors import Overloaded, TuneDockError, Unavailable

from ..catalog import Catalog
from ..keeper import EngineKeeper
from ..leases import LeasedStream, Leases
from ..pool import EnginePool, GenerateDelta, GenerateRequest, Pinned
from ..residency.residents import Residents
from .requests import CHAT_FIELDS, COMPLETION_FIELDS, RequestCaps, clean, clean_response, sticky_key

T = TypeVar("T")
Perform = Callable[[dict[str, Any], Pinned, str], Awaitable[dict[str, Any] | AsyncGenerator[T, None]]]


@dataclass(frozen=True)
class Answer(Generic[T]):
    """Exactly one of `body` and `stream`. `pinned` says which version answered."""

    pinned: Pinned
    body: dict[str, Any] | None = None
    stream: LeasedStream[T] | None = None


@dataclass(frozen=True)
class Admission:
    """`max_inflight`: requests in the server at once. `requeue_wait_s`: how long a request outlives an engine death."""

    max_inflight: int = 512
    requeue_wait_s: float = 60.0


@dataclass(frozen=True)
class Peeked(Generic[T]):
    """A stream whose first part has been fetched already."""

    first: Sequence[T]
    source: AsyncGenerator[T, None]

    @classmethod
    async def begin(cls, source: AsyncGenerator[T, None]) -> Peeked[T]:
        try:
            return cls([await anext(source)], source)
        except StopAsyncIteration:
            return cls([], source)
        except BaseException:
            await source.aclose()
            raise


class Inference:
    """Chats, completions and responses. `draining` is set by shutdown: running requests finish, new ones are refused."""

    def __init__(
        self,
        catalog: Catalog,
        pool: EnginePool,
        residents: Residents,
        leases: Leases,
        keeper: EngineKeeper,
        admission: Admission,
        caps: RequestCaps,
    ) -> None:
        self._catalog = catalog
        self._pool = pool
        self._residents = residents
        self._leases = leases
        self._keeper = keeper
        self._admission = admission
        self._caps = caps
        self.draining = False

    async def chat(self, project: str, body: Any, request_id: str) -> Answer[bytes]:
        """Raises NotFound, BadInput, Overloaded, Unavailable."""
        return await self._answer(project, clean(body, CHAT_FIELDS, self._caps), request_id, self._pool.chat)

    async def complete(self, project: str, body: Any, request_id: str) -> Answer[bytes]:
        """Raises as `chat`."""
        return await self._answer(project, clean(body, COMPLETION_FIELDS, self._caps), request_id, self._pool.complete)

    async def respond(self, project: str, body: Any, request_id: str) -> Answer[bytes]:
        """Raises as `chat`."""
        return await self._answer(project, clean_response(body, self._caps), request_id, self._pool.respond)

    async def generate(
        self, project: str, model: str, request: GenerateRequest
    ) -> tuple[Pinned, LeasedStream[GenerateDelta]]:
        """Token deltas of `request`, for transports of our own. Raises as `chat`, before the first delta is out."""
        fields = COMPLETION_FIELDS if request.messages is None else CHAT_FIELDS

        async def perform(_: dict[str, Any], pinned: Pinned, request_id: str) -> AsyncGenerator[GenerateDelta, None]:
            asked = request if request_id == request.request_id else replace(request, request_id=request_id)
            return self._pool.generate(asked, pinned)

        body = request.body() | {"model": model}
        answer = await self._answer(project, clean(body, fields, self._caps), request.request_id, perform)
        return answer.pinned, cast(LeasedStream[GenerateDelta], answer.stream)

    async def _answer(self, project: str, body: dict[str, Any], request_id: str, perform: Perform[T]) -> Answer[T]:
        self._admit()
        pinned = self._catalog.resolve(project, body["model"], sticky_key(body))
        with ExitStack() as held:
            held.callback(self._leases.acquire(pinned.digest).release)
            try:
                answer = await self._run(pinned, body, request_id, perform, held)
            except TuneDockError as error:
                if error.code != "engine_unavailable":
                    raise
                # Nothing was sent yet, so the request survives one death of the engine; at a second one it is suspect.
                await self._keeper.wait_up(self._admission.requeue_wait_s)
                answer = await self._run(pinned, body, f"{request_id}-again", perform, held)
            if isinstance(answer, dict):
                return Answer(pinned, body=answer)
            return Answer(pinned, stream=LeasedStream(answer.source, held.pop_all().close, answer.first))

    async def _run(
        self, pinned: Pinned, body: dict[str, Any], request_id: str, perform: Perform[T], held: ExitStack
    ) -> dict[str, Any] | Peeked[T]:
        """Runs up to the first bytes, so that whatever goes wrong until then is still an ordinary error answer."""
        with ExitStack() as seat:
            seat.callback(await self._residents.use(pinned))
            raw = await perform(dict(body), pinned, request_id)
            answer = raw if isinstance(raw, dict) else await Peeked.begin(raw)
            held.callback(seat.pop_all().close)
            return answer

    def _admit(self) -> None:
        if self.draining:
            raise Unavailable("This server is shutting down.", "shutting_down", retry_after_s=2.0)
        self._keeper.require_up()
        if self._leases.total() >= self._admission.max_inflight:
            raise Overloaded(
                f"The server already works on {self._admission.max_inflight} requests: try again later.",
                "engine_overloaded",
                retry_after_s=1.0,
            )
