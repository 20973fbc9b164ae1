from __future__ import annotations

import io
import json
import tracemalloc
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.datasets import assistant, call, chat, check, examples, facts, jsonl, tool, user
from tunedock_api.errors import BadInput
from tunedock_registry.data.examples import ChatExample, CompletionExample, PreferenceExample
from tunedock_registry.data.formats import job_failure, read_examples, too_few_examples, validate_file
from tunedock_registry.data.lines import MAX_LINE_BYTES

GOOD = chat(user("hi"), assistant("hello"))
PREFERENCE: dict[str, Any] = {
    "input": {"messages": [user("hi")]},
    "preferred_output": [assistant("hello")],
    "non_preferred_output": [assistant("go away")],
}


def codes(*rows: Any) -> list[tuple[int, str, str]]:
    return [(error.line, error.path, error.code) for error in check(*rows).errors]


def test_each_format_is_recognised() -> None:
    assert isinstance(examples(GOOD)[0], ChatExample)
    assert isinstance(examples({"prompt": "1+1=", "completion": "2"})[0], CompletionExample)
    assert isinstance(examples(PREFERENCE)[0], PreferenceExample)


def test_the_old_names_of_preference_outputs_are_accepted() -> None:
    old = {
        "input": PREFERENCE["input"],
        "preferred_completion": PREFERENCE["preferred_output"],
        "non_preferred_completion": PREFERENCE["non_preferred_output"],
    }
    (example,) = examples(old)
    assert isinstance(example, PreferenceExample)
    assert example.preferred["content"] == "hello"


@pytest.mark.parametrize(
    "data",
    [
        b"\xef\xbb\xbf" + jsonl([GOOD, GOOD]),
        jsonl([GOOD, GOOD]).replace(b"\n", b"\r\n"),
        jsonl([GOOD, GOOD]).rstrip(b"\n"),
        b"\n" + jsonl([GOOD]) + b"   \n" + jsonl([GOOD]) + b"\n\n",
    ],
    ids=["BOM", "CRLF", "no final newline", "blank lines"],
)
def test_harmless_variations_of_the_file_are_accepted(data: bytes) -> None:
    report = validate_file(io.BytesIO(data))
    assert (report.ok, report.num_examples) == (True, 2)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            b'{"messages" 1}',
            "Invalid file format. Example 2 cannot be parsed. Error: line contains invalid json: "
            "Expecting ':' delimiter: line 1 column 13 (char 12) (line 2)",
        ),
        (
            b"[1, 2]",
            "Expected file to have JSONL format, where every line is a JSON dictionary. Line 2 is not a dictionary",
        ),
        (
            json.dumps(chat(user("a"), assistant("b"), weight=1)).encode(),
            'Invalid file format. Example 2 contains an extra "weight".',
        ),
        (
            json.dumps(chat(user("a"), {"content": "b"}, assistant("c"))).encode(),
            "Invalid file format. Example 2, message 2 Discriminator 'role' is missing in value",
        ),
    ],
)
def test_messages_are_openais_own(line: bytes, message: str) -> None:
    report = validate_file(io.BytesIO(jsonl([GOOD]) + line + b"\n"))
    assert report.errors[0].message == message
    assert report.status_details() == message


def test_a_preference_line_without_input_says_so_in_openais_words() -> None:
    row = {key: value for key, value in PREFERENCE.items() if key != "input"}
    assert check(PREFERENCE, row).errors[0].message == "Invalid file format. Example 2 is missing key 'input'."


@pytest.mark.parametrize(
    ("row", "path", "code"),
    [
        ({}, "messages", "missing_key"),
        ({"messages": []}, "messages", "missing_messages_list"),
        ({"messages": "hi"}, "messages", "missing_messages_list"),
        (chat(user("a")), "messages", "example_missing_assistant_message"),
        (chat(user("a"), assistant("b", weight=0)), "messages", "no_trained_message"),
        (chat(user("a"), assistant("b", weight=0.5)), "messages[1].weight", "invalid_weight"),
        (chat(user("a"), assistant("b", weight=True)), "messages[1].weight", "invalid_weight"),
        (chat({**user("a"), "weight": 1}, assistant("b")), "messages[0].weight", "weight_on_wrong_role"),
        (chat({**user("a"), "mood": 1}, assistant("b")), "messages[0].mood", "message_unrecognized_key"),
        (chat({"role": "robot", "content": "a"}, assistant("b")), "messages[0].role", "unrecognized_role"),
        ({"messages": ["hi", assistant("b")]}, "messages[0]", "message_not_a_dictionary"),
        (chat(user(""), assistant("b")), "messages[0].content", "empty_content"),
        (chat(user("a"), assistant(" \n")), "messages[1].content", "empty_content"),
        (chat(user("a"), assistant(None)), "messages[1].content", "missing_content"),
        (chat({"role": "user"}, assistant("b")), "messages[0].content", "missing_content"),
        (chat({"role": "user", "content": 7}, assistant("b")), "messages[0].content", "invalid_content"),
        (
            chat({"role": "user", "content": [{"type": "image_url"}]}, assistant("b")),
            "messages[0].content[0]",
            "invalid_content",
        ),
        (
            chat(user("a"), assistant(None, tool_calls=[call("f", "{oops")])),
            "messages[1].tool_calls[0].function.arguments",
            "invalid_tool_arguments",
        ),
        (
            chat(user("a"), assistant(None, tool_calls=[call("f", "[1]")])),
            "messages[1].tool_calls[0].function.arguments",
            "invalid_tool_arguments",
        ),
        (
            chat(user("a"), assistant(None, tool_calls=[call("g")]), tools=[tool("f")]),
            "messages[1].tool_calls[0].function.name",
            "undeclared_tool",
        ),
        (
            chat(user("a"), {"role": "tool", "content": "1", "tool_call_id": "zz"}, assistant("b")),
            "messages[1].tool_call_id",
            "unknown_tool_call_id",
        ),
        (
            chat(user("a"), assistant(None, tool_calls=[call("f"), call("f")])),
            "messages[1].tool_calls",
            "duplicate_tool_call_id",
        ),
        (chat(user("a"), assistant("b"), tools=[{"name": "f"}]), "tools[0].function", "invalid_tools"),
        (chat(user("a"), assistant("b"), tools=[tool("f"), tool("f")]), "tools", "invalid_tools"),
        (chat(user("a"), assistant("b"), parallel_tool_calls="yes"), "parallel_tool_calls", "invalid_type"),
        ({"prompt": "", "completion": "b"}, "prompt", "empty_content"),
        ({"prompt": "a"}, "completion", "missing_key"),
        ({"prompt": "a", "completion": 3}, "completion", "invalid_type"),
        ({**PREFERENCE, "preferred_output": []}, "preferred_output", "invalid_output"),
        ({**PREFERENCE, "preferred_output": [user("x")]}, "preferred_output[0].role", "invalid_output"),
        ({**PREFERENCE, "non_preferred_output": [assistant("hello")]}, "", "identical_outputs"),
        (
            {**PREFERENCE, "input": {"messages": [user("a"), assistant("b")]}},
            "input.messages",
            "input_ends_wrong",
        ),
        ({**PREFERENCE, "preferred_completion": [assistant("x")]}, "preferred_completion", "extra_key"),
    ],
)
def test_bad_input_is_named_with_its_place(row: dict[str, Any], path: str, code: str) -> None:
    assert (1, path, code) in codes(row)


def test_every_error_of_every_line_is_reported_not_only_the_first() -> None:
    bad = chat({"role": "user"}, {"role": "robot", "content": "x"}, assistant("y", weight=3), extra=1)
    found = codes(GOOD, bad, GOOD, chat(user("a")))
    assert [line for line, _, _ in found] == [2, 2, 2, 2, 4]


def test_the_listing_is_capped_but_the_count_is_not() -> None:
    report = check(*[chat(user("a"))] * 250)
    assert (report.num_errors, report.num_bad_lines, len(report.errors)) == (250, 250, 100)
    assert (report.status_details() or "").endswith("… and 230 more errors; see the file's report")


def test_a_file_mixing_formats_is_refused_where_it_changes() -> None:
    assert codes(GOOD, {"prompt": "a", "completion": "b"}) == [(2, "", "mixed_formats")]


def test_a_tool_conversation_with_answers_is_accepted() -> None:
    row = chat(
        user("weather?"),
        assistant(None, tool_calls=[call("weather", '{"city": "Oslo"}')]),
        {"role": "tool", "content": "", "tool_call_id": "c1"},
        assistant("Cold."),
        tools=[tool("weather")],
    )
    report = check(row)
    assert (report.ok, report.num_warnings) == (True, 0)


def test_an_unanswered_tool_call_is_a_warning() -> None:
    row = chat(user("a"), assistant(None, tool_calls=[call("f")]), user("and?"), assistant("b"))
    report = check(row)
    assert (report.ok, [w.code for w in report.warnings]) == (True, ["unanswered_tool_call"])


def test_old_functions_become_tools() -> None:
    row = chat(
        user("a"),
        assistant(None, function_call={"name": "f", "arguments": "{}"}),
        {"role": "function", "name": "f", "content": "1"},
        assistant("b"),
        functions=[{"name": "f", "parameters": {"type": "object"}}],
    )
    (example,) = examples(row)
    assert isinstance(example, ChatExample)
    assert example.tools[0]["function"]["name"] == "f"


def test_an_empty_file_is_an_error() -> None:
    assert validate_file(io.BytesIO(b"\n \n")).errors[0].code == "empty_file"


def test_a_line_without_end_does_not_fill_memory() -> None:
    report = validate_file(io.BytesIO(b"x" * (MAX_LINE_BYTES + 5) + b"\n" + jsonl([GOOD])))
    assert [(e.line, e.code) for e in report.errors] == [(1, "line_too_long")]
    assert report.num_examples == 1


def test_half_a_surrogate_pair_is_refused() -> None:
    data = b'{"messages":[{"role":"user","content":"\\ud800"},{"role":"assistant","content":"b"}]}'
    assert validate_file(io.BytesIO(data)).errors[0].code == "invalid_encoding"


def test_deep_nesting_is_an_error_not_a_crash() -> None:
    assert validate_file(io.BytesIO(b'{"a":' + b"[" * 100_000)).errors[0].code == "invalid_json"


def test_files_of_other_purposes_are_not_looked_into() -> None:
    assert validate_file(io.BytesIO(b"\x00\xff"), "user_data").ok


def test_reading_a_bad_file_raises_its_first_error() -> None:
    with pytest.raises(BadInput, match="Example 2") as caught:
        list(read_examples(io.BytesIO(jsonl([GOOD, chat(user("a"))]))))
    assert caught.value.code == "invalid_file_format"


def test_ten_examples_are_needed_for_training_and_one_for_validation() -> None:
    error = job_failure(check(GOOD, GOOD, GOOD))
    assert error is not None
    assert error.message == "Training file has 3 example(s), but must have at least 10 examples"
    assert (error.code, error.param) == ("invalid_n_examples", "training_file")
    assert job_failure(check(GOOD), "validation_file") is None
    assert too_few_examples(10) is None


def test_a_job_error_names_the_file_and_the_first_line() -> None:
    error = job_failure(check(GOOD, chat(user("a"), assistant("b"), weight=1)))
    assert error is not None
    assert error.code == "invalid_file_format"
    assert error.message == (
        "The job failed due to a file format error in the training file. "
        'Invalid file format. Example 2 contains an extra "weight".'
    )
    error = job_failure(check(GOOD, chat({"content": "x"}, assistant("b"))))
    assert error is not None
    assert error.code == "invalid_training_file"
    assert error.message.startswith("The job failed due to an invalid training file. Invalid file format. Example 2,")


class Endless(io.RawIOBase):
    """`count` lines made on the fly: a file larger than the memory that may be used."""

    def __init__(self, line: bytes, count: int) -> None:
        self._lines: Iterator[bytes] = (line for _ in range(count))

    def readline(self, size: int | None = -1, /) -> bytes:
        return next(self._lines, b"")


def test_memory_stays_flat_while_a_large_file_streams() -> None:
    line = jsonl([chat(user("x" * 20_000), assistant("y"))])
    tracemalloc.start()
    report = validate_file(Endless(line, 2_000))  # type: ignore[arg-type]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert report.num_examples == 2_000
    assert peak < 2_000_000


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=400))
def test_random_bytes_never_raise(data: bytes) -> None:
    report = validate_file(io.BytesIO(data))
    assert report.num_examples + report.num_bad_lines == report.num_lines


KEYS = st.sampled_from(
    [
        "messages",
        "role",
        "content",
        "weight",
        "tool_calls",
        "function",
        "name",
        "arguments",
        "id",
        "tools",
        "input",
        "preferred_output",
        "tool_call_id",
        "non_preferred_output",
        "prompt",
        "completion",
        "functions",
        "function_call",
    ]
)
LEAVES = (
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.sampled_from(["assistant", "user", "tool"])
)
VALUES = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=5))


@settings(max_examples=200, deadline=None)
@given(st.lists(st.dictionaries(KEYS, VALUES, max_size=4), max_size=3))
def test_random_shapes_never_raise(rows: list[dict[str, Any]]) -> None:
    report = check(*rows)
    assert report.num_examples + report.num_bad_lines == report.num_lines


def test_good_rows_stay_good() -> None:
    assert check(*facts(50)).ok
