from __future__ import annotations

import time
from typing import Any

from support.datasets import assistant, call, chat, examples, tool, user
from tunedock_registry.data.tool_schemas import tool_schema_errors

WEATHER = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer", "maximum": 7}},
    "required": ["city"],
    "additionalProperties": False,
}


def found(arguments: str, schema: dict[str, Any]) -> list[tuple[str, str]]:
    row = chat(user("a"), assistant(None, tool_calls=[call("w", arguments)]), tools=[tool("w", **schema)])
    return [(error.path, error.code) for example in examples(row) for error in tool_schema_errors(example)]


PLACE = "messages[1].tool_calls[0].function.arguments"


def test_matching_arguments_have_no_findings() -> None:
    assert found('{"city": "Oslo", "days": 3}', WEATHER) == []


def test_every_broken_rule_is_a_finding() -> None:
    assert found('{"days": 9, "town": "Oslo"}', WEATHER) == [(PLACE, "tool_arguments_mismatch")] * 3


def test_a_schema_that_is_none_is_a_finding() -> None:
    assert found("{}", {"type": "nonsense"}) == [(PLACE, "invalid_tool_schema")]


def test_remote_references_are_not_followed() -> None:
    assert found('{"x": 1}', {"properties": {"x": {"$ref": "http://127.0.0.1:9/s.json"}}}) == [
        (PLACE, "invalid_tool_schema")
    ]


def test_a_schema_that_refers_to_itself_ends() -> None:
    assert found("{}", {"$ref": "#"}) == [(PLACE, "invalid_tool_schema")]


def test_patterns_of_the_data_are_never_run() -> None:
    started = time.monotonic()
    assert found('{"x": "' + "a" * 60 + '"}', {"properties": {"x": {"pattern": "^(a+)+$b"}}}) == []
    assert time.monotonic() - started < 5


def test_preference_outputs_are_checked_too() -> None:
    row = {
        "input": {"messages": [user("a")], "tools": [tool("w", **WEATHER)]},
        "preferred_output": [assistant(None, tool_calls=[call("w", '{"city": "Oslo"}')])],
        "non_preferred_output": [assistant(None, tool_calls=[call("w")])],
    }
    (example,) = examples(row)
    assert [error.path for error in tool_schema_errors(example)] == [
        "non_preferred_output[0].tool_calls[0].function.arguments"
    ]
