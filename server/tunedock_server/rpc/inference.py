"""`tunedock_api.v1.Inference`."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing

from tunedock_api.jsonpb import Json, from_answer
from tunedock_api.v1 import inference_pb2 as pb
from tunedock_api.v1.inference_pb2_grpc import InferenceServicer

from ..pool import GenerateRequest, Pinned
from ..services.inference import Inference
from ..services.models import ModelService
from . import prompts
from .answers import Tally, chunk, chunks_of, response_from_chat
from .guard import Context, current_call


class InferenceRpc(InferenceServicer):
    """Streams the engine's token deltas; only answers that may hold tool calls go through OpenAI's shapes."""

    def __init__(self, inference: Inference, models: ModelService, capacity: Callable[[], Json]) -> None:
        self._inference = inference
        self._models = models
        self._capacity = capacity

    async def Chat(self, request: pb.ChatRequest, context: Context) -> pb.GenerateResponse:
        if request.tools:
            return await self._chat_with_tools(request)
        call = prompts.chat_request(request, current_call().request_id)
        return await self._whole(prompts.chat_body(request), call)

    async def StreamChat(self, request: pb.ChatRequest, context: Context) -> AsyncIterator[pb.GenerateChunk]:
        if request.tools:
            for part in chunks_of(await self._chat_with_tools(request)):
                yield part
            return
        call = prompts.chat_request(request, current_call().request_id)
        async with aclosing(self._parts(prompts.chat_body(request), call)) as parts:
            async for part in parts:
                yield part

    async def Complete(self, request: pb.CompleteRequest, context: Context) -> pb.GenerateResponse:
        call = prompts.completion_request(request, current_call().request_id)
        return await self._whole(prompts.completion_body(request), call)

    async def StreamComplete(self, request: pb.CompleteRequest, context: Context) -> AsyncIterator[pb.GenerateChunk]:
        call = prompts.completion_request(request, current_call().request_id)
        async with aclosing(self._parts(prompts.completion_body(request), call)) as parts:
            async for part in parts:
                yield part

    async def ListModels(self, request: pb.ListModelsRequest, context: Context) -> pb.ListModelsResponse:
        return from_answer(pb.ListModelsResponse, {"data": self._models.list(current_call().principal.project)})

    async def GetCapacity(self, request: pb.GetCapacityRequest, context: Context) -> pb.Capacity:
        return from_answer(pb.Capacity, self._capacity())

    async def _chat_with_tools(self, request: pb.ChatRequest) -> pb.GenerateResponse:
        call = current_call()
        body = prompts.chat_body(request) | {"return_token_ids": True}
        answer = await self._inference.chat(call.principal.project, body, call.request_id)
        _tell_version(answer.pinned)
        return response_from_chat(answer.body or {})

    async def _whole(self, body: Json, request: GenerateRequest) -> pb.GenerateResponse:
        pinned, stream = await self._inference.generate(current_call().principal.project, body, request)
        _tell_version(pinned)
        tally = Tally()
        async with aclosing(stream):
            async for delta in stream:
                tally.add(delta)
        return tally.response(request.request_id, pinned.public)

    async def _parts(self, body: Json, request: GenerateRequest) -> AsyncGenerator[pb.GenerateChunk, None]:
        pinned, stream = await self._inference.generate(current_call().principal.project, body, request)
        _tell_version(pinned)
        tally, head = Tally(), True
        async with aclosing(stream):
            async for delta in stream:
                tally.count(delta)
                part = chunk(delta)
                if head:
                    head = False
                    part.id, part.model, part.created = request.request_id, pinned.public, int(time.time())
                yield part
        yield pb.GenerateChunk(usage=tally.usage())


def _tell_version(pinned: Pinned) -> None:
    if pinned.digest is not None:
        current_call().trailers["x-tunedock-digest"] = pinned.digest
