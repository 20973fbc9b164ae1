"""A JSONL byte stream as numbered JSON objects or errors. Memory is bounded by the longest allowed line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, BinaryIO

MAX_LINE_BYTES = 16 << 20
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class LineError:
    """One finding. `line` starts at 1; `path` is like `messages[2].content`, empty for the whole line."""

    line: int
    path: str
    code: str
    message: str

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class JsonLine:
    line: int
    value: dict[str, Any]


def json_lines(stream: BinaryIO) -> Iterator[JsonLine | LineError]:
    """Yields each non-blank line, in order. Accepts a UTF-8 BOM, CRLF and a missing final newline. Never raises on data."""
    number = 0
    while raw := stream.readline(MAX_LINE_BYTES + 1):
        number += 1
        if len(raw) > MAX_LINE_BYTES:
            _skip_rest_of_line(stream, raw)
            yield _unparsable(number, "line_too_long", f"line is longer than {MAX_LINE_BYTES >> 20} MiB")
            continue
        if number == 1:
            raw = raw.removeprefix(_BOM)
        if raw.strip():
            yield _parse(number, raw)


def _skip_rest_of_line(stream: BinaryIO, raw: bytes) -> None:
    while raw and not raw.endswith(b"\n"):
        raw = stream.readline(1 << 20)


def _parse(number: int, raw: bytes) -> JsonLine | LineError:
    try:
        text = raw.decode("utf-8").rstrip("\r\n")
    except UnicodeDecodeError as error:
        return _unparsable(number, "invalid_encoding", f"line is not valid UTF-8 at byte {error.start + 1}")
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
    except RecursionError:
        return _unparsable(number, "invalid_json", "line contains invalid json: nested too deeply")
    except ValueError as error:
        return _unparsable(number, "invalid_json", f"line contains invalid json: {error}")
    if not isinstance(value, dict):
        return LineError(
            number,
            "",
            "not_a_dictionary",
            "Expected file to have JSONL format, where every line is a JSON dictionary. "
            f"Line {number} is not a dictionary",
        )
    # A lone surrogate (\ud800) is legal JSON but no text: tokenizers refuse it.
    if "\\u" in text and _has_lone_surrogate(value):
        return _unparsable(number, "invalid_encoding", "line contains half of a surrogate pair")
    return JsonLine(number, value)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON value")


def _has_lone_surrogate(value: dict[str, Any]) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return True
    return False


def _unparsable(number: int, code: str, reason: str) -> LineError:
    text = f"Invalid file format. Example {number} cannot be parsed. Error: {reason} (line {number})"
    return LineError(number, "", code, text)
