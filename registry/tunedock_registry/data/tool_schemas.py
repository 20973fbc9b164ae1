"""Do the arguments of the tool calls in the data match the JSON schemas that the data declares for them?"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError
from jsonschema.validators import extend
from referencing import Registry
from referencing.exceptions import Unresolvable

from .checks import called_functions, parse_arguments
from .examples import ChatExample, CompletionExample, Example, Message, PreferenceExample
from .lines import LineError

_MAX_PER_CALL = 5


def _unchecked(*_: Any) -> Iterator[Any]:
    return iter(())


# Patterns come with the data: one that backtracks without end would hold a worker for ever.
_UNCHECKED = {"pattern": _unchecked, "patternProperties": _unchecked}
_Validator: Any = extend(Draft202012Validator, _UNCHECKED)  # type: ignore[no-untyped-call]


def tool_schema_errors(example: Example) -> list[LineError]:
    """One finding for each violated rule, at most five a call; also for schemas that are none."""
    if isinstance(example, CompletionExample) or not example.tools:
        return []
    schemas = {t["function"]["name"]: t["function"].get("parameters") for t in example.tools}
    found = []
    for place, message in _assistant_messages(example):
        for where, function in called_functions(message):
            schema = schemas.get(function["name"])
            if schema is not None:
                path = f"{place}.{where}.arguments"
                found += [_finding(example.line, path, code, text) for code, text in _violations(schema, function)]
    return found


def _assistant_messages(example: ChatExample | PreferenceExample) -> Iterator[tuple[str, Message]]:
    prefix = "messages" if isinstance(example, ChatExample) else "input.messages"
    for number, message in enumerate(example.messages):
        yield f"{prefix}[{number}]", message
    if isinstance(example, PreferenceExample):
        yield "preferred_output[0]", example.preferred
        yield "non_preferred_output[0]", example.non_preferred


def _violations(schema: dict[str, Any], function: dict[str, Any]) -> Iterator[tuple[str, str]]:
    name, arguments = function["name"], parse_arguments(function["arguments"])
    try:
        validator = _validator(json.dumps(schema, sort_keys=True))
        for number, error in enumerate(validator.iter_errors(arguments)):
            if number == _MAX_PER_CALL:
                return
            yield (
                "tool_arguments_mismatch",
                f"calls '{name}' with arguments that break its schema: {error.message[:200]}.",
            )
    except SchemaError as error:
        yield (
            "invalid_tool_schema",
            f"declares '{name}' with parameters that are no JSON schema: {error.message[:200]}.",
        )
    except (Unresolvable, RecursionError):
        yield "invalid_tool_schema", f"declares '{name}' with a schema reference that cannot be followed."


@lru_cache(maxsize=256)
def _validator(schema: str) -> Any:
    parsed = json.loads(schema)
    _Validator.check_schema(parsed)
    # An explicit registry: the default one would fetch remote references over the network.
    return _Validator(parsed, registry=Registry())


def _finding(line: int, path: str, code: str, text: str) -> LineError:
    return LineError(line, path, code, f"Invalid file format. Example {line} {text}")
