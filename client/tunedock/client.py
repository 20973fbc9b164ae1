"""`AsyncTuneDock`: the whole client. `TuneDock` (in `sync`) runs the same code on a background event loop."""

from __future__ import annotations

from collections.abc import AsyncIterator
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from tunedock_api.errors import NotFound

from . import operations as op
from .adapters import AsyncAdapters
from .data import TrainingData
from .files import AsyncFiles
from .inference import Messages, Prompt, chat_body, deltas_of, prompt_body, reply_of, streaming
from .jobs import AsyncJob, AsyncJobs
from .keys import AsyncKeys
from .pages import collect
from .rest import RestTransport
from .settings import NO_KEY, Connection, connection
from .tuning import Method, job_body
from .types import Delta, Model, Reply

if TYPE_CHECKING:
    import openai


def transport_for(to: Connection) -> op.Transport:
    """gRPC when a target is given. grpc is imported only then."""
    if to.grpc_target is None:
        return RestTransport(to)
    from .grpc_transport import GrpcTransport

    return GrpcTransport(to)


class AsyncTuneDock:
    """A client of one TuneDock service.

    `base_url` and `api_key` come from TUNEDOCK_BASE_URL and TUNEDOCK_API_KEY (then OPENAI_*) when not given. With `grpc`
    (`host:port`, `grpcs://host:port`; else TUNEDOCK_GRPC) everything but `openai()` goes over gRPC.
    Every method raises only `TuneDockError`s.
    """

    def __init__(
        self,
        base_url: str | None = None,
        api_key: str | None = None,
        *,
        grpc: str | None = None,
        timeout_s: float = 600.0,
        max_retries: int = 2,
    ) -> None:
        self.connection: Connection = connection(
            base_url, api_key, grpc=grpc, timeout_s=timeout_s, max_retries=max_retries
        )
        self._transport = transport_for(self.connection)
        self.files = AsyncFiles(self._transport)
        self.jobs = AsyncJobs(self._transport)
        self.adapters = AsyncAdapters(self._transport)
        self._rest = RestTransport(self.connection)
        self.keys = AsyncKeys(self._rest)

    async def chat(self, messages: Messages, *, model: str | None = None, **options: Any) -> Reply:
        """Answers `messages` (text, or OpenAI messages). `options` are those of OpenAI's chat completions."""
        body = chat_body(messages, model or await self.base_model(), options)
        return reply_of(await self._transport.call(op.CHAT, body=body))

    async def stream(self, messages: Messages, *, model: str | None = None, **options: Any) -> AsyncIterator[Delta]:
        """Like `chat`, in pieces. Leaving the loop early frees the sequence on the server."""
        body = streaming(chat_body(messages, model or await self.base_model(), options))
        async for chunk in self._transport.stream(op.CHAT, body):
            for delta in deltas_of(chunk):
                yield delta

    async def complete(self, prompt: Prompt, *, model: str | None = None, **options: Any) -> Reply:
        """Continues `prompt` (text or token ids) without a chat template."""
        body = prompt_body(prompt, model or await self.base_model(), options)
        return reply_of(await self._transport.call(op.COMPLETE, body=body))

    async def tune(
        self,
        data: TrainingData,
        *,
        adapter: str,
        model: str | None = None,
        validation: TrainingData | None = None,
        method: Method = "supervised",
        **knobs: Any,
    ) -> AsyncJob:
        """Uploads `data`, waits until it is validated, and starts a job whose result becomes the next version of `adapter`.

        `data`: a path to JSONL, an iterable of dicts, a `datasets.Dataset` or a pandas frame.
        `knobs`: `n_epochs`, `batch_size`, `learning_rate_multiplier`, `seed`, `suffix`, `metadata`, and TuneDock's own
        (`lora={"rank": 8}` or just `rank=8`, …). Raises BadInput with the line numbers when the data is not usable.
        """
        training = await self._validated(data)
        checking = await self._validated(validation) if validation is not None else None
        base = model or await self.base_model()
        return await self.jobs.create(job_body(base, training, checking, adapter, method, knobs))

    async def models(self) -> list[Model]:
        """The base model and every adapter that can be asked."""
        return await collect(self._transport, op.LIST_MODELS, Model)

    async def base_model(self) -> str:
        """The id of the base model that the server has loaded."""
        base = next((model.id for model in await self.models() if model.parent is None), None)
        if base is None:
            raise NotFound(f"{self.connection.base_url} lists no base model.")
        return base

    async def capacity(self) -> op.Json:
        """Slots, host memory and queue of the server."""
        return await self._transport.call(op.CAPACITY)

    def openai(self) -> openai.OpenAI:
        """An `openai.OpenAI` for this service."""
        from openai import OpenAI

        to = self.connection
        return OpenAI(
            base_url=to.base_url, api_key=to.api_key or NO_KEY, timeout=to.timeout_s, max_retries=to.max_retries
        )

    async def aclose(self) -> None:
        await self._transport.aclose()
        await self._rest.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def _validated(self, data: TrainingData) -> str:
        return (await self.files.wait((await self.files.upload(data)).id)).id
