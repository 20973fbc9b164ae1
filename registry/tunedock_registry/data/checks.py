"""The rules for messages and tools. Each check reports everything it finds to a `Findings` and raises nothing."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from .examples import message_weight
from .lines import LineError

ROLES = ("system", "developer", "user", "assistant", "tool", "function")
_COMMON_KEYS = {"role", "content", "name"}
_KEYS_BY_ROLE = {
    "assistant": _COMMON_KEYS | {"weight", "tool_calls", "function_call", "refusal", "audio"},
    "tool": _COMMON_KEYS | {"tool_call_id"},
}
_MAY_BE_EMPTY = ("tool", "function")
_FUNCTION_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")


@dataclass
class Findings:
    """Errors and warnings of one line."""

    line: int
    errors: list[LineError] = field(default_factory=list)
    warnings: list[LineError] = field(default_factory=list)

    def error(self, path: str, code: str, text: str, message: int | None = None) -> None:
        self.errors.append(self._make(path, code, text, message))

    def warn(self, path: str, code: str, text: str, message: int | None = None) -> None:
        self.warnings.append(self._make(path, code, text, message))

    def _make(self, path: str, code: str, text: str, message: int | None) -> LineError:
        where = "" if message is None else f", message {message + 1}"
        return LineError(self.line, path, code, f"Invalid file format. Example {self.line}{where} {text}")


def check_messages(found: Findings, value: Any, path: str, tools: Any) -> None:
    """A non-empty list of messages, each well formed, with tool calls and their answers in order."""
    if not isinstance(value, list) or not value:
        found.error(path, "missing_messages_list", f"has no list of messages at '{path}'.")
        return
    for number, message in enumerate(value):
        check_message(found, message, f"{path}[{number}]", number)
    messages = [m if isinstance(m, dict) else {} for m in value]
    _check_call_ids(found, messages, path)
    _check_called_names(found, messages, path, tools)


def check_trainable(found: Findings, messages: Sequence[Any], path: str) -> None:
    """At least one assistant message, at least one of them with weight 1."""
    spoken = [m for m in messages if isinstance(m, dict) and m.get("role") == "assistant"]
    if not spoken:
        found.error(path, "example_missing_assistant_message", "has no message with role 'assistant'.")
    elif not any(message_weight(m) if m.get("weight") in (None, 0, 1) else 1 for m in spoken):
        found.error(path, "no_trained_message", "has no assistant message with weight 1, so nothing is trained.")
    elif isinstance(messages[-1], dict) and messages[-1].get("role") != "assistant":
        found.warn(path, "last_message_not_assistant", "ends with messages that no assistant message answers.")


def check_message(found: Findings, message: Any, path: str, number: int) -> None:
    if not isinstance(message, dict):
        found.error(path, "message_not_a_dictionary", "is not a dictionary.", number)
        return
    role = message.get("role")
    if "role" not in message:
        found.error(path, "message_missing_key", "Discriminator 'role' is missing in value", number)
        return
    if not isinstance(role, str) or role not in ROLES:
        found.error(f"{path}.role", "unrecognized_role", f"has an unknown role {_short(role)}.", number)
        return
    for key in sorted(message.keys() - _KEYS_BY_ROLE.get(role, _COMMON_KEYS)):
        _check_extra_key(found, role, key, path, number)
    _check_content(found, message, role, path, number)
    _check_text(found, message, "name", path, number)
    if role == "assistant":
        _check_assistant(found, message, path, number)
    if role == "tool" and not isinstance(message.get("tool_call_id"), str):
        found.error(f"{path}.tool_call_id", "message_missing_key", "is missing key 'tool_call_id'.", number)
    if role == "function" and not isinstance(message.get("name"), str):
        found.error(f"{path}.name", "message_missing_key", "is missing key 'name'.", number)


def _check_extra_key(found: Findings, role: str, key: str, path: str, number: int) -> None:
    if key == "weight":
        text = f"has a weight, but its role is '{role}': only assistant messages may have one."
        found.error(f"{path}.weight", "weight_on_wrong_role", text, number)
    else:
        found.error(f"{path}.{key[:64]}", "message_unrecognized_key", f'contains an extra "{key[:64]}".', number)


def _check_content(found: Findings, message: dict[str, Any], role: str, path: str, number: int) -> None:
    content = message.get("content")
    path = f"{path}.content"
    replaced = role == "assistant" and any(message.get(k) for k in ("tool_calls", "function_call", "refusal"))
    if isinstance(content, list):
        _check_parts(found, content, path, number)
    elif content is None:
        if not replaced:
            found.error(path, "missing_content", "is missing key 'content'.", number)
    elif not isinstance(content, str):
        found.error(path, "invalid_content", f"has content that is no text: {_short(content)}.", number)
    elif not content.strip() and not replaced and role not in _MAY_BE_EMPTY:
        found.error(path, "empty_content", "has empty content.", number)


def _check_parts(found: Findings, parts: list[Any], path: str, number: int) -> None:
    if not parts:
        found.error(path, "empty_content", "has empty content.", number)
    for index, part in enumerate(parts):
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            text = "has a content part that is no text; only parts of type 'text' can be trained."
            found.error(f"{path}[{index}]", "invalid_content", text, number)


def _check_text(found: Findings, message: dict[str, Any], key: str, path: str, number: int) -> None:
    if message.get(key) is not None and not isinstance(message[key], str):
        found.error(f"{path}.{key}", "invalid_type", f"has a '{key}' that is not a string.", number)


def _check_assistant(found: Findings, message: dict[str, Any], path: str, number: int) -> None:
    weight = message.get("weight")
    if weight is not None and (isinstance(weight, bool) or weight not in (0, 1)):
        found.error(f"{path}.weight", "invalid_weight", f"has weight {_short(weight)}; it must be 0 or 1.", number)
    _check_text(found, message, "refusal", path, number)
    if message.get("function_call") is not None:
        _check_function(found, message["function_call"], f"{path}.function_call", number)
    calls = message.get("tool_calls")
    if calls is None:
        return
    if not isinstance(calls, list):
        found.error(f"{path}.tool_calls", "invalid_tool_call", "has 'tool_calls' that are not a list.", number)
        return
    for index, call in enumerate(calls):
        _check_call(found, call, f"{path}.tool_calls[{index}]", number)


def _check_call(found: Findings, call: Any, path: str, number: int) -> None:
    if not isinstance(call, dict):
        found.error(path, "invalid_tool_call", "has a tool call that is not a dictionary.", number)
        return
    if not isinstance(call.get("id"), str) or not call["id"]:
        found.error(f"{path}.id", "invalid_tool_call", "has a tool call without 'id'.", number)
    if call.get("type", "function") != "function":
        found.error(f"{path}.type", "invalid_tool_call", "has a tool call whose type is not 'function'.", number)
    _check_function(found, call.get("function"), f"{path}.function", number)


def _check_function(found: Findings, function: Any, path: str, number: int) -> None:
    if not isinstance(function, dict):
        found.error(path, "invalid_tool_call", "has a tool call without 'function'.", number)
        return
    name, arguments = function.get("name"), function.get("arguments")
    if not isinstance(name, str) or not _FUNCTION_NAME.fullmatch(name):
        found.error(f"{path}.name", "invalid_tool_call", "has a tool call without a valid 'name'.", number)
    if not isinstance(arguments, str):
        text = "has a tool call whose 'arguments' are not a JSON string."
        found.error(f"{path}.arguments", "invalid_tool_arguments", text, number)
    elif parse_arguments(arguments) is None:
        text = "has a tool call whose 'arguments' do not hold a JSON object."
        found.error(f"{path}.arguments", "invalid_tool_arguments", text, number)


def parse_arguments(text: str) -> dict[str, Any] | None:
    """The arguments of a tool call; an empty string means none, as in vLLM. None when they are no JSON object."""
    try:
        value = json.loads(text) if text else {}
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _check_call_ids(found: Findings, messages: list[dict[str, Any]], path: str) -> None:
    """Ids are unique, answers refer to an earlier call; calls left open before the next turn are warned about."""
    known: set[str] = set()
    waiting: dict[str, int] = {}
    for number, message in enumerate(messages):
        if message.get("role") == "tool" and isinstance(message.get("tool_call_id"), str):
            _check_answer(found, message["tool_call_id"], known, f"{path}[{number}].tool_call_id", number)
            waiting.pop(message["tool_call_id"], None)
        for call_id in _call_ids(message):
            if call_id in known:
                where = f"{path}[{number}].tool_calls"
                found.error(where, "duplicate_tool_call_id", f"repeats the tool call id {_short(call_id)}.", number)
            known.add(call_id)
            waiting[call_id] = number
    for call_id, number in waiting.items():
        if number < len(messages) - 1:
            text = f"has a tool call {_short(call_id)} that no 'tool' message answers."
            found.warn(f"{path}[{number}].tool_calls", "unanswered_tool_call", text, number)


def _check_answer(found: Findings, call_id: str, known: set[str], path: str, number: int) -> None:
    if call_id not in known:
        text = f"answers the tool call {_short(call_id)}, which no earlier message makes."
        found.error(path, "unknown_tool_call_id", text, number)


def _call_ids(message: dict[str, Any]) -> list[str]:
    calls = message.get("tool_calls")
    if not isinstance(calls, list):
        return []
    return [c["id"] for c in calls if isinstance(c, dict) and isinstance(c.get("id"), str)]


def called_functions(message: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """(path below the message, function) of every well-formed call, old style included."""
    calls = message.get("tool_calls")
    pairs = [(f"tool_calls[{i}].function", c.get("function")) for i, c in enumerate(_dicts(calls))]
    pairs.append(("function_call", message.get("function_call")))
    return [(where, f) for where, f in pairs if isinstance(f, dict) and isinstance(f.get("name"), str)]


def _dicts(value: Any) -> list[dict[str, Any]]:
    return [item if isinstance(item, dict) else {} for item in value] if isinstance(value, list | tuple) else []


def _check_called_names(found: Findings, messages: list[dict[str, Any]], path: str, tools: Any) -> None:
    names = {tool["function"].get("name") for tool in _dicts(tools) if isinstance(tool.get("function"), dict)}
    if not names:
        return
    for number, message in enumerate(messages):
        for where, function in called_functions(message):
            if function["name"] not in names:
                text = f"calls {_short(function['name'])}, which 'tools' does not declare."
                found.error(f"{path}[{number}].{where}.name", "undeclared_tool", text, number)


def check_tools(found: Findings, tools: Any, path: str) -> None:
    if tools is None:
        return
    if not isinstance(tools, list):
        found.error(path, "invalid_tools", f"has '{path}' that is not a list.")
        return
    for index, tool in enumerate(tools):
        function = tool.get("function") if isinstance(tool, dict) and tool.get("type") == "function" else None
        check_declaration(found, function, f"{path}[{index}].function")
    names = [t["function"]["name"] for t in tools if _declares(t)]
    for name in sorted({n for n in names if names.count(n) > 1}):
        found.error(path, "invalid_tools", f"declares the tool {_short(name)} more than once.")


def _declares(tool: Any) -> bool:
    function = tool.get("function") if isinstance(tool, dict) else None
    return isinstance(function, dict) and isinstance(function.get("name"), str)


def check_declaration(found: Findings, function: Any, path: str) -> None:
    if not isinstance(function, dict):
        found.error(path, "invalid_tools", 'has a tool that is not {"type": "function", "function": {…}}.')
        return
    name, parameters = function.get("name"), function.get("parameters")
    if not isinstance(name, str) or not _FUNCTION_NAME.fullmatch(name):
        found.error(f"{path}.name", "invalid_tools", "has a tool without a valid 'name'.")
    if parameters is not None and not isinstance(parameters, dict):
        found.error(f"{path}.parameters", "invalid_tools", "has a tool whose 'parameters' are not a JSON schema.")
    if function.get("description") is not None and not isinstance(function["description"], str):
        found.error(f"{path}.description", "invalid_tools", "has a tool whose 'description' is not a string.")


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:60] + "…"
