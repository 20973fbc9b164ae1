"""Messages as requests for generation. Pure.

OpenAI's request, which REST takes and every check is made on, follows from those (`GenerateRequest.body`).
"""

from __future__ import annotations

import json
import math
from typing import Any

from google.protobuf.message import Message
from tunedock_api.errors import BadInput
from tunedock_api.jsonpb import Json, plain
from tunedock_api.v1 import inference_pb2 as pb

from ..pool import GenerateRequest, Sampling

# As in OpenAI's completions.
COMPLETION_MAX_TOKENS = 16
# Absent and zero differ in the first, not in the second; the third are lists.
_OPTIONAL = (
    "temperature", "top_p", "top_k", "min_p", "frequency_penalty", "presence_penalty", "repetition_penalty", "seed",
    "logprobs", "skip_special_tokens",
)  # fmt: skip
_ZERO_IS_OFF = ("max_tokens", "min_tokens", "n", "ignore_eos", "include_stop_str_in_output")
_LISTS = ("stop", "stop_token_ids", "allowed_token_ids", "bad_words")
_TOOL_CHOICES = ("auto", "none", "required")


def chat_request(request: pb.ChatRequest, request_id: str) -> GenerateRequest:
    """Raises BadInput for a chat without messages and for JSON that is none."""
    messages = [_message(one) for one in request.messages]
    if not messages:
        raise BadInput("A chat needs at least one message.", param="messages")
    tools = [_tool(one, index) for index, one in enumerate(request.tools)]
    options = _given(
        request,
        ("parallel_tool_calls", "add_generation_prompt"),
        ("user", "reasoning_effort", "continue_final_message"),
    )
    if request.HasField("chat_template_kwargs"):
        options["chat_template_kwargs"] = plain(request.chat_template_kwargs)
    if request.tool_choice:
        options["tool_choice"] = _tool_choice(request.tool_choice)
    return GenerateRequest(
        request_id, messages=messages, tools=tools, sampling=_sampling(request.sampling), options=options
    )


def completion_request(request: pb.CompleteRequest, request_id: str) -> GenerateRequest:
    """Raises BadInput for a missing prompt and for JSON that is none."""
    sampling = _sampling(request.sampling, {"max_tokens": COMPLETION_MAX_TOKENS})
    options = _given(request, ("add_special_tokens",), ("user",))
    match request.WhichOneof("prompt"):
        case "text":
            return GenerateRequest(request_id, text=request.text, sampling=sampling, options=options)
        case "token_ids" if request.token_ids.ids:
            ids = list(request.token_ids.ids)
            return GenerateRequest(request_id, token_ids=ids, sampling=sampling, options=options)
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


def _tool_choice(choice: str) -> str | Json:
    return choice if choice in _TOOL_CHOICES else {"type": "function", "function": {"name": choice}}


def _json(text: str, param: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadInput(f"'{param}' must be JSON text.", param=param) from error


def _given(message: Message, optional: tuple[str, ...], zero_is_off: tuple[str, ...]) -> Json:
    """The fields that were set, by name."""
    found = {name: getattr(message, name) for name in optional if message.HasField(name)}
    return found | {name: value for name in zero_is_off if (value := getattr(message, name))}


def _sampling(sampling: pb.Sampling, defaults: Json | None = None) -> Sampling:
    chosen = (defaults or {}) | _given(sampling, _OPTIONAL, _ZERO_IS_OFF)
    chosen |= {name: tuple(getattr(sampling, name)) for name in _LISTS}
    if sampling.logit_bias:
        chosen["logit_bias"] = {str(token): bias for token, bias in sampling.logit_bias.items()}
    _check_finite(chosen)
    return Sampling(structured_outputs=_structured_outputs(sampling), **chosen)


def _check_finite(chosen: Json) -> None:
    """JSON has no other numbers, so that nothing behind this point expects any."""
    for name, value in chosen.items():
        numbers = value.values() if isinstance(value, dict) else [value]
        if any(isinstance(number, float) and not math.isfinite(number) for number in numbers):
            raise BadInput(f"'{name}' must be a finite number.", param=name)


def _structured_outputs(sampling: pb.Sampling) -> Json | None:
    """Several constraints go on together: the engine says what is wrong with that."""
    found = _given(sampling, (), ("json_object", "regex", "grammar"))
    if sampling.choice:
        found["choice"] = list(sampling.choice)
    if sampling.json_schema:
        found["json"] = _json(sampling.json_schema, "sampling.json_schema")
    return found or None
