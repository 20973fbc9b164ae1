"""Messages and tools as the serving engine hands them to the chat template.

vLLM (vllm/renderers/chat_utils.py, hf.py; `FunctionDefinition`) rewrites every request before it renders: null content
becomes "", text parts are joined, tool arguments are parsed, key order is fixed, unknown keys are dropped. A training
example must go through the same rewriting or the adapter learns a prompt that serving never shows. A test compares
this module with vLLM's own functions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from .checks import parse_arguments
from .examples import Message, Tool


def conversation(messages: Sequence[Message], *, keeps_developer: bool) -> list[Message]:
    """`messages` for the template; deprecated function calls become tool calls.

    `keeps_developer`: the template knows the role `developer`; otherwise such messages become system messages, and
    all system messages move to the front as one.
    """
    rewritten = list(_rewrite_all(messages))
    if keeps_developer or all(message["role"] != "developer" for message in rewritten):
        return rewritten
    return _merge_system([{**m, "role": "system"} if m["role"] == "developer" else m for m in rewritten])


def tool_dicts(tools: Sequence[Tool]) -> list[Tool] | None:
    """The tools in vLLM's key order, absent description and parameters as null; None when there are none."""
    return [{"type": "function", "function": _declaration(tool["function"])} for tool in tools] or None


def _declaration(function: dict[str, Any]) -> dict[str, Any]:
    declared = {key: function.get(key) for key in ("name", "description", "parameters")}
    if function.get("strict") is not None:
        declared["strict"] = function["strict"]
    return declared


def text_of(message: Message) -> str:
    """The text that a message shows; parts are joined by newlines, a refusal stands in for missing content."""
    content = message.get("content")
    if content is None:
        return message.get("refusal") or ""
    if isinstance(content, str):
        return content
    return "\n".join(part["text"] for part in content)


def _rewrite_all(messages: Sequence[Message]) -> Iterator[Message]:
    open_call = ""
    for number, message in enumerate(messages):
        if message.get("function_call"):
            open_call = f"call_{number}"
        yield _rewrite(message, open_call)


def _rewrite(message: Message, open_call: str) -> Message:
    role = message["role"]
    new: Message = {"role": role, "content": text_of(message)}
    if role == "assistant":
        calls = [_call(call["id"], call["function"]) for call in message.get("tool_calls") or ()]
        if message.get("function_call"):
            calls.append(_call(open_call, message["function_call"]))
        if calls:
            new["tool_calls"] = calls
    elif role == "tool":
        new["tool_call_id"] = message["tool_call_id"]
    elif role == "function":
        new |= {"role": "tool", "tool_call_id": open_call}
    elif role == "developer":
        new["tools"] = None
    if isinstance(message.get("name"), str):
        new["name"] = message["name"]
    return new


def _call(call_id: str, function: dict[str, Any]) -> dict[str, Any]:
    arguments = parse_arguments(function["arguments"]) or {}
    return {"id": call_id, "function": {"arguments": arguments, "name": function["name"]}, "type": "function"}


def _merge_system(messages: list[Message]) -> list[Message]:
    system = [message for message in messages if message["role"] == "system"]
    if len(system) == 1 and messages[0]["role"] == "system":
        return messages
    merged = {"role": "system", "content": "\n\n".join(m["content"] for m in system if m["content"])}
    return [merged, *(message for message in messages if message["role"] != "system")]
