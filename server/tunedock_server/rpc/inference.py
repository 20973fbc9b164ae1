"""`tunedock_api.v1.Inference`."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from functools import partial

from tunedock_api.jsonpb import Json, from_answer
from tunedock_api.v1 import inference_pb2 as pb
from tunedock_api.v1.inference_pb2_grpc import InferenceServicer

from ..pool import Full, GenerateDelta, GenerateRequest, Pinned, Take
from ..services.inference import Inference
from ..services.models import ModelService
from . import prompts
from .answers import Tally, add_delta, add_event, response_from_chat, usage_of
from .events import events
from .guard import Context, current_call
from .many import ManyStreams

NewChunk = Callable[[], pb.GenerateChunk]


class InferenceRpc(InferenceServicer):
    """Streams the engine's token deltas; only answers that may hold tool calls go through OpenAI's shapes.

    `timeout_s` bounds every answer of a StreamMany call.
    """

    def __init__(
        self, inference: Inference, models: ModelService, capacity: Callable[[], Json], timeout_s: float
    ) -> None:
        self._inference = inference
        self._models = models
        self._capacity = capacity
        self._timeout_s = timeout_s
        self._many: set[ManyStreams] = set()

    def finish(self) -> None:
        """Calls of many streams, which callers keep open, end with the streams that run."""
        for one in self._many:
            one.finish()

    async def Chat(self, request: pb.ChatRequest, context: Context) -> pb.GenerateResponse:
        call = prompts.chat_request(request, current_call().request_id)
        return await (self._whole_with_tools if call.tools else self._whole)(request.model, call)

    # Streams write by themselves, which grpc allows and its stubs do not know: a generator is one more turn per message.

    async def StreamChat(self, request: pb.ChatRequest, context: Context) -> None:  # type: ignore[override]
        await self._pour(request, pb.GenerateChunk, lambda chunk: partial(context.write, chunk))

    async def Complete(self, request: pb.CompleteRequest, context: Context) -> pb.GenerateResponse:
        return await self._whole(request.model, prompts.completion_request(request, current_call().request_id))

    async def StreamComplete(self, request: pb.CompleteRequest, context: Context) -> None:  # type: ignore[override]
        await self._pour(request, pb.GenerateChunk, lambda chunk: partial(context.write, chunk))

    async def StreamMany(  # type: ignore[override]
        self, requests: AsyncIterator[pb.StreamManyRequest], context: Context
    ) -> None:
        many = ManyStreams(self._pour, self._timeout_s)
        self._many.add(many)
        try:
            await many.run(requests, context.write)
        finally:
            self._many.discard(many)

    async def ListModels(self, request: pb.ListModelsRequest, context: Context) -> pb.ListModelsResponse:
        return from_answer(pb.ListModelsResponse, {"data": self._models.list(current_call().principal.project)})

    async def GetCapacity(self, request: pb.GetCapacityRequest, context: Context) -> pb.Capacity:
        return from_answer(pb.Capacity, self._capacity())

    async def _whole_with_tools(self, model: str, call: GenerateRequest) -> pb.GenerateResponse:
        body = call.body() | {"model": model, "return_token_ids": True}
        answer = await self._inference.chat(current_call().principal.project, body, call.request_id)
        _tell_version(answer.pinned)
        return response_from_chat(answer.body or {})

    async def _whole(self, model: str, call: GenerateRequest) -> pb.GenerateResponse:
        pinned, stream = await self._inference.generate(current_call().principal.project, model, call)
        _tell_version(pinned)
        tally = Tally()
        async with aclosing(stream):
            async for delta in stream:
                tally.add(delta)
        return tally.response(call.request_id, pinned.public)

    async def _pour(
        self, request: pb.ChatRequest | pb.CompleteRequest, new: NewChunk, sent: Take[pb.GenerateChunk]
    ) -> None:
        """Fills chunks that `new` makes with an answer, and hands over each when it is complete."""
        request_id = current_call().request_id
        if isinstance(request, pb.CompleteRequest):
            await self._steps(request.model, prompts.completion_request(request, request_id), new, sent)
            return
        call = prompts.chat_request(request, request_id)
        await (self._steps_with_tools if call.tools else self._steps)(request.model, call, new, sent)

    async def _steps(self, model: str, call: GenerateRequest, new: NewChunk, sent: Take[pb.GenerateChunk]) -> None:
        """`take` runs once for every token."""
        pinned, stream = await self._inference.generate(current_call().principal.project, model, call)
        _tell_version(pinned)
        latest: dict[int, GenerateDelta] = {}
        part: pb.GenerateChunk | None = _head(new(), call.request_id, pinned)

        def take(delta: GenerateDelta) -> Full:
            nonlocal part
            latest[delta.index] = delta
            filled = part or new()
            add_delta(filled, delta)
            part = filled if delta.more else None
            return None if delta.more else sent(filled)

        async with aclosing(stream):
            await stream.pour(take)
        last = new()
        last.usage.CopyFrom(usage_of(latest.values()))
        if (full := sent(last)) is not None:
            await full()

    async def _steps_with_tools(
        self, model: str, call: GenerateRequest, new: NewChunk, sent: Take[pb.GenerateChunk]
    ) -> None:
        """OpenAI's own events: which text begins a tool call only the model's parser knows."""
        options = {"stream": True, "stream_options": {"include_usage": True}, "return_token_ids": True}
        body = call.body() | {"model": model} | options
        answer = await self._inference.chat(current_call().principal.project, body, call.request_id)
        _tell_version(answer.pinned)
        first = True
        async with aclosing(events(answer.stream)) as found:
            async for event in found:
                part = _head(new(), call.request_id, answer.pinned) if first else new()
                first = False
                add_event(part, event)
                if (full := sent(part)) is not None:
                    await full()


def _head(part: pb.GenerateChunk, request_id: str, pinned: Pinned) -> pb.GenerateChunk:
    part.id, part.model, part.created = request_id, pinned.public, int(time.time())
    return part


def _tell_version(pinned: Pinned) -> None:
    if pinned.digest is not None:
        current_call().trailers["x-tunedock-digest"] = pinned.digest
