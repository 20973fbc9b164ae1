"""The Responses API through vLLM's own serving class, without its store: one request, one answer, nothing kept."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from typing import Any

from vllm.entrypoints.openai.responses.protocol import ResponsesRequest
from vllm.entrypoints.openai.responses.serving import OpenAIServingResponses

from ..pool import Pinned, SseStream
from . import errors, fields, response_fields
from .leased import Leased


class LeasedResponses(Leased, OpenAIServingResponses):
    pass


def request_of(body: dict[str, Any], pinned: Pinned, request_id: str, max_n: int) -> ResponsesRequest:
    """The checked request with the profile applied. Raises BadInput."""
    cleaned = fields.clean(body, response_fields.RESPONSES, max_n)
    filled = response_fields.apply_profile(cleaned, pinned.profile)
    try:
        return ResponsesRequest.model_validate({**filled, "store": False, "request_id": f"resp_{request_id}"})
    except Exception as error:  # validators of vLLM raise pydantic's and their own errors
        raise errors.from_exception(error) from error


async def sse(events: AsyncGenerator[Any, None]) -> SseStream:
    """Named server-sent events, as OpenAI sends them. Raises TuneDockError for what goes wrong in the middle."""
    try:
        async for event in events:
            yield _event(event.model_dump(mode="json", by_alias=True))
    except Exception as error:  # edge to vLLM
        raise errors.from_exception(error) from error
    finally:
        await events.aclose()


def _event(event: dict[str, Any]) -> bytes:
    """vLLM ends an answer that was cut by its length as `completed`; OpenAI's event for that is `incomplete`."""
    if event["type"] == "response.completed" and event["response"]["status"] == "incomplete":
        event["type"] = "response.incomplete"
    return f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode()
