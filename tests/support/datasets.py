"""JSONL builders for data tests."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable
from typing import Any

from tunedock_registry.data.examples import Example
from tunedock_registry.data.formats import FileReport, read_examples, validate_file


def user(content: str) -> dict[str, Any]:
    return {"role": "user", "content": content}


def assistant(content: str | None, **extra: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **extra}


def chat(*messages: dict[str, Any], **extra: Any) -> dict[str, Any]:
    return {"messages": list(messages), **extra}


def call(name: str, arguments: str = "{}", call_id: str = "c1") -> dict[str, Any]:
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


def tool(name: str, **parameters: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": parameters or {"type": "object"}}}


def jsonl(rows: Iterable[Any]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def stream(rows: Iterable[Any]) -> io.BytesIO:
    return io.BytesIO(jsonl(rows))


def check(*rows: Any) -> FileReport:
    return validate_file(stream(rows))


def examples(*rows: Any) -> list[Example]:
    return list(read_examples(stream(rows)))


def facts(count: int) -> list[dict[str, Any]]:
    """`count` different one-turn examples."""
    return [chat(user(f"What is {n} times {n + 3}?"), assistant(f"{n * (n + 3)}")) for n in range(count)]
