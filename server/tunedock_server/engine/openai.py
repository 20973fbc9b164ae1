"""Chats, text completions and responses through vLLM's own OpenAI serving classes, without its HTTP app.

Streaming, tools, JSON schema, logprobs, echo, seeds and stop strings are therefore vLLM's. What is ours: a request runs on
the adapter of its lease (a ContextVar, set for the length of the call), never on a name from the body, and answers carry
the lease's public name.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable
from typing import Any

from tunedock_api.errors import TuneDockError
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.chat_completion.serving import OpenAIServingChat
from vllm.entrypoints.openai.completion.protocol import CompletionRequest
from vllm.entrypoints.openai.completion.serving import OpenAIServingCompletion
from vllm.entrypoints.openai.models.protocol import BaseModelPath
from vllm.entrypoints.serve.engine.protocol import ErrorResponse
from vllm.lora.request import LoRARequest
from vllm.renderers.online_renderer import OnlineRenderer
from vllm.v1.engine.async_llm import AsyncLLM

from ..pool import EngineSettings, Pinned, SseStream
from . import errors, fields, responses
from .leased import LEASE, Lease, Leased, PublicNames


class _Chat(Leased, OpenAIServingChat):
    pass


class _Completion(Leased, OpenAIServingCompletion):
    pass


class OpenAIFrontEnd:
    """vLLM's handlers around one running engine."""

    def __init__(self, llm: AsyncLLM, settings: EngineSettings) -> None:
        self.max_n = settings.max_n
        tools = {"enable_auto_tools": settings.tool_parser is not None, "tool_parser": settings.tool_parser}
        template: dict[str, Any] = {"chat_template": None, "chat_template_content_format": "auto"}
        models = PublicNames(llm, [BaseModelPath(settings.model_id, str(settings.model_path))])
        self.renderer = OnlineRenderer(llm.model_config, llm.renderer, request_logger=None, **template, **tools)
        shared: dict[str, Any] = {"online_renderer": self.renderer, "request_logger": None}
        shared["enable_prompt_tokens_details"] = True
        self._chat = _Chat(llm, models, "assistant", **shared, **template, **tools)
        self._completion = _Completion(llm, models, **shared)
        self._responses = responses.LeasedResponses(llm, models, **shared, **template, **tools)

    async def chat(
        self, body: dict[str, Any], pinned: Pinned, lora: LoRARequest | None, request_id: str
    ) -> dict[str, Any] | SseStream:
        request = self.chat_request(body, pinned, request_id)
        return await self._run(self._chat.create_chat_completion, request, Lease(pinned.public, lora))

    async def complete(
        self, body: dict[str, Any], pinned: Pinned, lora: LoRARequest | None, request_id: str
    ) -> dict[str, Any] | SseStream:
        cleaned = fields.apply_profile(fields.clean(body, fields.COMPLETION, self.max_n), pinned.profile)
        request = _parse(CompletionRequest, cleaned, request_id)
        return await self._run(self._completion.create_completion, request, Lease(pinned.public, lora))

    async def respond(
        self, body: dict[str, Any], pinned: Pinned, lora: LoRARequest | None, request_id: str
    ) -> dict[str, Any] | SseStream:
        request = responses.request_of(body, pinned, request_id, self.max_n)
        return await self._run(self._responses.create_responses, request, Lease(pinned.public, lora), responses.sse)

    def chat_request(self, body: dict[str, Any], pinned: Pinned, request_id: str) -> ChatCompletionRequest:
        """The checked request with the profile applied. Raises BadInput."""
        cleaned = fields.apply_profile(fields.clean(body, fields.CHAT, self.max_n), pinned.profile)
        return _parse(ChatCompletionRequest, cleaned, request_id)

    @staticmethod
    async def _run(
        handler: Any, request: Any, lease: Lease, encode: Callable[[Any], SseStream] | None = None
    ) -> dict[str, Any] | SseStream:
        token = LEASE.set(lease)
        try:
            result = await handler(request)
        except Exception as error:  # edge to vLLM: all that it raises becomes one of ours
            raise errors.from_exception(error) from error
        finally:
            LEASE.reset(token)
        if (task := asyncio.current_task()) and task.cancelling():
            raise asyncio.CancelledError  # vLLM answers a cancelled call with an error object
        if isinstance(result, ErrorResponse):
            raise errors.from_response(result.error.model_dump())
        if isinstance(result, AsyncGenerator):
            return (encode or _sse)(result)
        return result.model_dump(mode="json", by_alias=True)


def _parse(model: Any, body: dict[str, Any], request_id: str) -> Any:
    try:
        return model.model_validate({**body, "request_id": request_id})
    except Exception as error:  # validators of vLLM raise pydantic's and their own errors
        raise errors.from_exception(error) from error


async def _sse(chunks: AsyncGenerator[str, None]) -> SseStream:
    """Bytes of the stream; an error after the first byte becomes an event with our error body."""
    try:
        async for chunk in chunks:
            yield (_our_error(chunk) if chunk.startswith('data: {"error"') else chunk).encode()
    finally:
        await chunks.aclose()


def _our_error(chunk: str) -> str:
    error: TuneDockError = errors.from_response(json.loads(chunk.removeprefix("data: "))["error"])
    return f"data: {json.dumps(error.body())}\n\n"
