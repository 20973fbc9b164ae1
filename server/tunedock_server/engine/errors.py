"""vLLM's errors as ours. Messages are shown to callers: no paths, no tracebacks."""

from __future__ import annotations

import logging
import re
from http import HTTPStatus
from typing import Any

from pydantic import ValidationError
from tunedock_api.errors import BadInput, Internal, Overloaded, TuneDockError, Unavailable
from vllm.entrypoints.serve import create_error_response
from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

_log = logging.getLogger("tunedock.engine")
_LIMIT = re.compile(r"maximum context length is (\d+) tokens")
_PROMPT = re.compile(r"contains (at least )?(\d+) (input tokens|characters)")
_DEAD = "EngineCore encountered an issue"
_NO_TOOLS = ("--enable-auto-tool-choice", "--tool-call-parser")
_SUFFIX = re.compile(r" \(parameter=(?P<param>[\w.]+)(, value=.*)?\)$", re.DOTALL)
_INPUT_LENGTH = re.compile(r"Input length \((\d+)\) exceeds model's maximum context length \((\d+)\)")


def engine_down() -> Unavailable:
    return Unavailable("The engine is not running; it is being restarted. Try again soon.", retry_after_s=5.0)


def from_exception(error: Exception) -> TuneDockError:
    """What to tell the caller. Unknown exceptions are logged and become Internal."""
    if isinstance(error, TuneDockError):
        return error
    if isinstance(error, EngineDeadError):
        return engine_down()
    if isinstance(error, ValidationError):
        return _invalid_body(error)
    if isinstance(error, EngineGenerateError) and isinstance(error.__cause__, Exception):
        return from_exception(error.__cause__)
    return from_response(create_error_response(error).error.model_dump(), error)


def from_response(error: dict[str, Any], cause: Exception | None = None) -> TuneDockError:
    """`error` has the keys message, param and code (an HTTP status), as vLLM's `ErrorInfo` does."""
    status, message = int(error["code"]), str(error["message"])
    if message.startswith(_DEAD):
        return engine_down()
    if status == HTTPStatus.SERVICE_UNAVAILABLE:
        return Overloaded("The engine's queue is full. Try again soon.", "engine_overloaded", retry_after_s=1.0)
    if 400 <= status < 500 or status == HTTPStatus.NOT_IMPLEMENTED:
        return _context_length(message) or _bad_input(message, error.get("param"))
    _log.error("engine error: %s", message, exc_info=cause)
    return Internal("The engine failed on this request; the log has the details under the request id.")


def _bad_input(message: str, param: str | None) -> BadInput:
    """vLLM's text without its command-line advice and its `(parameter=…)` suffix."""
    if any(flag in message for flag in _NO_TOOLS):
        return BadInput("This server was started without a tool parser; set tool_choice to none.", param="tool_choice")
    if suffix := _SUFFIX.search(message):
        param, message = param or suffix["param"], message[: suffix.start()]
    return BadInput(message, param=param)


def _context_length(message: str) -> BadInput | None:
    limit, prompt = _LIMIT.search(message), _PROMPT.search(message)
    if limit and prompt:
        return context_length_exceeded(int(limit[1]), int(prompt[2]), bool(prompt[1]), prompt[3].split()[-1])
    if short := _INPUT_LENGTH.search(message):
        return context_length_exceeded(int(short[2]), int(short[1]))
    return None


def context_length_exceeded(limit: int, length: int, at_least: bool = False, unit: str = "tokens") -> BadInput:
    return BadInput(
        f"This model's maximum context length is {limit} tokens, but the prompt has "
        f"{'at least ' if at_least else ''}{length} {unit}. Shorten the prompt.",
        "context_length_exceeded",
        param="messages",
        details={"max_tokens": limit, f"prompt_{unit}": length},
    )


def _invalid_body(error: ValidationError) -> BadInput:
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    where = ".".join(str(part) for part in first["loc"]) or None
    return BadInput(f"{where or 'body'}: {first['msg']}", param=where)
