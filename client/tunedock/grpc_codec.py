"""Between OpenAI's shapes, in which this client thinks, and the messages of `Inference`. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from google.protobuf.json_format import ParseDict
from tunedock_api.errors import BadInput
from tunedock_api.v1 import inference_pb2 as pb

from .operations import Json

_PLAIN = (
    "temperature", "top_p", "top_k", "min_p", "frequency_penalty", "presence_penalty", "repetition_penalty", "seed", "n",
    "min_tokens", "stop_token_ids", "allowed_token_ids", "bad_words", "ignore_eos", "include_stop_str_in_output",
    "skip_special_tokens",
)  # fmt: skip
_SAMPLING = frozenset((
    *_PLAIN, "max_tokens", "max_completion_tokens", "stop", "logit_bias", "logprobs", "top_logprobs", "response_format",
    "structured_outputs",
))  # fmt: skip
_CHAT = ("parallel_tool_calls", "user", "reasoning_effort", "add_generation_prompt", "continue_final_message")
_COMPLETION = ("user", "add_special_tokens")
_ALWAYS = frozenset(("model", "stream", "stream_options"))
ALL_CHAT = _SAMPLING | _ALWAYS | {*_CHAT, "messages", "tools", "tool_choice", "chat_template_kwargs"}
ALL_COMPLETION = _SAMPLING | _ALWAYS | {*_COMPLETION, "prompt"}
_CONSTRAINTS = frozenset(("json_object", "regex", "choice", "grammar"))


def chat_request(body: Mapping[str, Any]) -> pb.ChatRequest:
    """Raises BadInput for an option that gRPC does not carry."""
    _refuse_unknown(body, ALL_CHAT)
    request = pb.ChatRequest(
        model=body["model"],
        messages=[_message(message) for message in body["messages"]],
        tools=[_tool(tool["function"]) for tool in body.get("tools") or ()],
        tool_choice=_tool_choice(body.get("tool_choice")),
        sampling=_sampling(body),
        **_given(body, _CHAT),
    )
    if body.get("chat_template_kwargs") is not None:
        ParseDict(body["chat_template_kwargs"], request.chat_template_kwargs)
    return request


def complete_request(body: Mapping[str, Any]) -> pb.CompleteRequest:
    """Raises BadInput for an option that gRPC does not carry."""
    _refuse_unknown(body, ALL_COMPLETION)
    prompt, given = body["prompt"], _given(body, _COMPLETION)
    if isinstance(prompt, str):
        return pb.CompleteRequest(model=body["model"], text=prompt, sampling=_sampling(body), **given)
    token_ids = pb.TokenIds(ids=prompt)
    return pb.CompleteRequest(model=body["model"], token_ids=token_ids, sampling=_sampling(body), **given)


def chat_answer(response: pb.GenerateResponse) -> Json:
    """OpenAI's chat completion."""
    choices = [
        {"index": c.index, "message": _answer_message(c), "finish_reason": c.finish_reason, **_extras(c)}
        for c in response.choices
    ]
    return _answer(response, "chat.completion", choices)


def complete_answer(response: pb.GenerateResponse) -> Json:
    """OpenAI's completion."""
    choices = [
        {"index": c.index, "text": c.text, "finish_reason": c.finish_reason, **_extras(c)} for c in response.choices
    ]
    return _answer(response, "text_completion", choices)


def chunk(part: pb.GenerateChunk, model: str) -> Json:
    """OpenAI's chat completion chunk; `model` is what the first part said."""
    shown: Json = {"object": "chat.completion.chunk", "model": model, "choices": [_delta(c) for c in part.choices]}
    return shown | ({"usage": _usage(part.usage)} if part.HasField("usage") else {})


def _answer(response: pb.GenerateResponse, kind: str, choices: list[Json]) -> Json:
    return {
        "id": response.id,
        "object": kind,
        "created": response.created,
        "model": response.model,
        "choices": choices,
        "usage": _usage(response.usage),
    }


def _answer_message(choice: pb.Choice) -> Json:
    calls = [_call_shown(call) for call in choice.tool_calls]
    return {"role": "assistant", "content": choice.text} | ({"tool_calls": calls} if calls else {})


def _delta(choice: pb.ChoiceDelta) -> Json:
    calls = [_call_piece(call) for call in choice.tool_calls]
    delta: Json = {"content": choice.text} | ({"tool_calls": calls} if calls else {})
    return {"index": choice.index, "delta": delta, "finish_reason": choice.finish_reason or None, **_extras(choice)}


def _extras(choice: pb.Choice | pb.ChoiceDelta) -> Json:
    tokens = [
        {
            "token": t.text,
            "logprob": t.logprob,
            "top_logprobs": [{"token": o.text, "logprob": o.logprob} for o in t.top],
        }
        for t in choice.logprobs
    ]
    return {"token_ids": list(choice.token_ids), "logprobs": {"content": tokens} if tokens else None}


def _usage(usage: pb.Usage) -> Json:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }


def _message(message: Mapping[str, Any]) -> pb.Message:
    return pb.Message(
        role=message.get("role", ""),
        content=_text(message.get("content")),
        name=message.get("name") or "",
        tool_call_id=message.get("tool_call_id") or "",
        tool_calls=[_call(call) for call in message.get("tool_calls") or ()],
    )


def _text(content: Any) -> str | None:
    """A string, or the texts of OpenAI's content parts."""
    if content is None or isinstance(content, str):
        return content
    if any(part.get("type") != "text" for part in content):
        raise BadInput("Over gRPC a message is text: this one has parts of other kinds.", param="messages")
    return "".join(part["text"] for part in content)


def _tool(function: Mapping[str, Any]) -> pb.Tool:
    parameters = function.get("parameters")
    return pb.Tool(
        name=function["name"],
        description=function.get("description") or "",
        parameters=json.dumps(parameters) if parameters is not None else "",
    )


def _call(call: Mapping[str, Any]) -> pb.ToolCall:
    function = call["function"]
    return pb.ToolCall(id=call.get("id") or "", name=function["name"], arguments=function.get("arguments") or "")


def _call_shown(call: pb.ToolCall) -> Json:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def _call_piece(call: pb.ToolCall) -> Json:
    """As OpenAI streams it: id, type and name come with the first piece only."""
    function: Json = {"arguments": call.arguments} | ({"name": call.name} if call.name else {})
    head = {"id": call.id, "type": "function"} if call.id else {}
    return {"index": call.index, **head, "function": function}


def _tool_choice(choice: Any) -> str:
    return str(choice["function"]["name"]) if isinstance(choice, Mapping) else choice or ""


def _refuse_unknown(body: Mapping[str, Any], known: frozenset[str]) -> None:
    unknown = sorted(name for name, value in body.items() if name not in known and value is not None)
    if unknown:
        raise BadInput(f"gRPC does not carry {unknown[0]!r}: ask over REST.", param=unknown[0])


def _given(body: Mapping[str, Any], names: Iterable[str]) -> Json:
    return {name: body[name] for name in names if body.get(name) is not None}


def _sampling(body: Mapping[str, Any]) -> pb.Sampling:
    try:
        return pb.Sampling(
            max_tokens=body.get("max_completion_tokens") or body.get("max_tokens") or 0,
            stop=_stops(body.get("stop")),
            logprobs=_num_logprobs(body),
            logit_bias={int(token): bias for token, bias in (body.get("logit_bias") or {}).items()},
            **_given(body, _PLAIN),
            **_constraint(body),
        )
    except (TypeError, ValueError) as error:
        raise BadInput(f"A sampling option does not fit its type: {error}.", param="sampling") from error


def _stops(stop: str | Iterable[str] | None) -> list[str]:
    return [stop] if isinstance(stop, str) else list(stop or ())


def _num_logprobs(body: Mapping[str, Any]) -> int | None:
    """Chat says `logprobs: true, top_logprobs: k`, completions say `logprobs: k`."""
    asked = body.get("logprobs")
    if isinstance(asked, bool) or asked is None:
        return int(body.get("top_logprobs") or 0) if asked else None
    return int(asked)


def _constraint(body: Mapping[str, Any]) -> Json:
    """`response_format` and `structured_outputs` as fields of Sampling."""
    form: Mapping[str, Any] = body.get("response_format") or {}
    outputs = _given(body.get("structured_outputs") or {}, body.get("structured_outputs") or {})
    if form.get("type") == "json_object":
        outputs["json_object"] = True
    elif form.get("type") == "json_schema":
        outputs["json"] = form["json_schema"].get("schema") or {}
    schema = outputs.pop("json", None)
    if unknown := outputs.keys() - _CONSTRAINTS:
        raise BadInput(
            f"gRPC does not carry structured_outputs.{min(unknown)}: ask over REST.", param="structured_outputs"
        )
    return outputs | (
        {} if schema is None else {"json_schema": schema if isinstance(schema, str) else json.dumps(schema)}
    )
