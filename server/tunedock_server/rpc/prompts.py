"""Requests for generation: the message as OpenAI's body (for the checks that REST does) and as the engine's request. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from tunedock_api.errors import BadInput
from tunedock_api.jsonpb import Json
from tunedock_api.v1 import inference_pb2 as pb

from ..pool import GenerateRequest, Sampling

# As in OpenAI's completions.
COMPLETION_MAX_TOKENS = 16
_OPTIONAL = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "frequency_penalty",
    "presence_penalty",
    "repetition_penalty",
    "seed",
)


def chat_body(request: pb.ChatRequest) -> Json:
    """OpenAI's chat completion request."""
    body: Json = {"model": request.model, "messages": [_message(one) for one in request.messages]}
    if request.tools:
        body["tools"] = [_tool(one, index) for index, one in enumerate(request.tools)]
    sampling = request.sampling
    if sampling.HasField("logprobs"):
        body |= {"logprobs": True, "top_logprobs": sampling.logprobs}
    if sampling.json_schema:
        schema = _json(sampling.json_schema, "sampling.json_schema")
        body["response_format"] = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
    return body | _common(sampling)


def completion_body(request: pb.CompleteRequest) -> Json:
    """OpenAI's completion request."""
    body: Json = {"model": request.model, "prompt": _prompt(request)}
    sampling = request.sampling
    if sampling.HasField("logprobs"):
        body["logprobs"] = sampling.logprobs
    if sampling.json_schema:
        body["structured_outputs"] = {"json": _json(sampling.json_schema, "sampling.json_schema")}
    return {"max_tokens": COMPLETION_MAX_TOKENS, **body, **_common(sampling)}


def chat_request(request: pb.ChatRequest, request_id: str) -> GenerateRequest:
    messages = [_message(one) for one in request.messages]
    if not messages:
        raise BadInput("A chat needs at least one message.", param="messages")
    return GenerateRequest(request_id, messages=messages, sampling=_sampling(request.sampling, None))


def completion_request(request: pb.CompleteRequest, request_id: str) -> GenerateRequest:
    sampling = _sampling(request.sampling, COMPLETION_MAX_TOKENS)
    prompt = _prompt(request)
    if isinstance(prompt, str):
        return GenerateRequest(request_id, text=prompt, sampling=sampling)
    return GenerateRequest(request_id, token_ids=prompt, sampling=sampling)


def _prompt(request: pb.CompleteRequest) -> str | list[int]:
    match request.WhichOneof("prompt"):
        case "text":
            return request.text
        case "token_ids" if request.token_ids.ids:
            return list(request.token_ids.ids)
    raise BadInput("Give a prompt: 'text', or at least one of 'token_ids'.", param="prompt")


def _message(message: pb.Message) -> Json:
    shown: Json = {"role": message.role, "content": message.content if message.HasField("content") else None}
    if message.name:
        shown["name"] = message.name
    if message.tool_call_id:
        shown["tool_call_id"] = message.tool_call_id
    if message.tool_calls:
        shown["tool_calls"] = [_call(one) for one in message.tool_calls]
    return shown


def _call(call: pb.ToolCall) -> Json:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def _tool(tool: pb.Tool, index: int) -> Json:
    function: Json = {"name": tool.name}
    if tool.description:
        function["description"] = tool.description
    if tool.parameters:
        function["parameters"] = _json(tool.parameters, f"tools[{index}].parameters")
    return {"type": "function", "function": function}


def _json(text: str, param: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadInput(f"'{param}' must be JSON text.", param=param) from error


def _common(sampling: pb.Sampling) -> Json:
    """What OpenAI's two requests share; absent fields stay absent, so that the version's defaults apply."""
    body: Json = {name: getattr(sampling, name) for name in _OPTIONAL if sampling.HasField(name)}  # type: ignore[arg-type]
    given: Iterable[tuple[str, Any]] = (
        ("max_tokens", sampling.max_tokens),
        ("n", sampling.n),
        ("stop", list(sampling.stop)),
        ("stop_token_ids", list(sampling.stop_token_ids)),
        ("ignore_eos", sampling.ignore_eos),
    )
    return body | {name: value for name, value in given if value}


def _sampling(sampling: pb.Sampling, default_max_tokens: int | None) -> Sampling:
    chosen = {name: getattr(sampling, name) for name in _OPTIONAL if sampling.HasField(name)}  # type: ignore[arg-type]
    return Sampling(
        max_tokens=sampling.max_tokens or default_max_tokens,
        n=sampling.n or 1,
        stop=tuple(sampling.stop),
        stop_token_ids=tuple(sampling.stop_token_ids),
        ignore_eos=sampling.ignore_eos,
        logprobs=sampling.logprobs if sampling.HasField("logprobs") else None,
        json_schema=sampling.json_schema or None,
        **chosen,
    )
