"""What of a caller's inference request may go on. Pure.

The accept-list itself is `engine.fields` (it imports nothing of vLLM); here are the checks that no engine needs to make.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tunedock_api.errors import BadInput

from ..engine import fields, response_fields

CHAT_FIELDS = fields.CHAT | {"model"}
COMPLETION_FIELDS = fields.COMPLETION | {"model"}
RESPONSE_FIELDS = response_fields.RESPONSES | {"model"}
_REFUSED_TEMPLATE_KWARGS = frozenset({"chat_template", "tokenize", "conversation", "messages", "tools"})


@dataclass(frozen=True)
class RequestCaps:
    """The largest values that one request may ask for."""

    max_tokens: int = 32_768
    n: int = 16
    prompts: int = 256
    messages: int = 4_096
    tools: int = 128
    pattern_chars: int = 4_096
    list_items: int = 1_024


def clean(body: Any, accepted: frozenset[str], caps: RequestCaps) -> dict[str, Any]:
    """The accepted, checked fields; None values are dropped. Raises BadInput with the field's name."""
    if not isinstance(body, dict):
        raise BadInput("The body must be a JSON object.")
    chosen = fields.clean(body, accepted, caps.n)
    _check_model(chosen.get("model"))
    _check_scalars(chosen, caps)
    _check_lists(chosen, caps)
    _check_template_kwargs(chosen.get("chat_template_kwargs"))
    _check_patterns(chosen.get("structured_outputs"), caps)
    return chosen


def clean_response(body: Any, caps: RequestCaps) -> dict[str, Any]:
    """As `clean`, for the Responses API."""
    if isinstance(body, dict):
        response_fields.refuse(body)
    return clean(body, RESPONSE_FIELDS, caps)


def _check_model(model: Any) -> None:
    if not isinstance(model, str) or not model:
        raise BadInput("You must provide a model parameter: GET /v1/models lists what there is.", param="model")


def _check_scalars(body: Mapping[str, Any], caps: RequestCaps) -> None:
    for name in ("max_tokens", "max_completion_tokens", "max_output_tokens", "min_tokens"):
        value = body.get(name, 0)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= caps.max_tokens:
            raise BadInput(f"'{name}' must be a whole number from 0 to {caps.max_tokens}.", param=name)
    for name in ("stream", "echo", "ignore_eos"):
        if not isinstance(body.get(name, False), bool):
            raise BadInput(f"'{name}' must be true or false.", param=name)


def _check_lists(body: Mapping[str, Any], caps: RequestCaps) -> None:
    for name, most in (
        ("messages", caps.messages),
        ("input", caps.messages),
        ("tools", caps.tools),
        ("stop_token_ids", caps.list_items),
        ("allowed_token_ids", 100 * caps.list_items),
        ("bad_words", caps.list_items),
        ("logit_bias", caps.list_items),
    ):
        value = body.get(name, ())
        if isinstance(value, list | dict) and len(value) > most:
            raise BadInput(f"'{name}' has {len(value)} items; at most {most} are allowed.", param=name)
    prompt = body.get("prompt")
    if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int) and len(prompt) > caps.prompts:
        raise BadInput(f"'prompt' holds {len(prompt)} prompts; at most {caps.prompts} are allowed.", param="prompt")


def _check_template_kwargs(kwargs: Any) -> None:
    if kwargs is None:
        return
    if not isinstance(kwargs, dict):
        raise BadInput("'chat_template_kwargs' must be an object.", param="chat_template_kwargs")
    for key, value in kwargs.items():
        if key in _REFUSED_TEMPLATE_KWARGS or not isinstance(value, bool | int | float | str | None):
            where = f"chat_template_kwargs.{key[:64]}"
            raise BadInput(f"'{where}' is not accepted by this server.", param=where)


def _check_patterns(structured: Any, caps: RequestCaps) -> None:
    """Patterns are compiled by the engine, so their size is bounded before they get there."""
    for key in ("regex", "grammar"):
        if isinstance(structured, dict) and len(str(structured.get(key) or "")) > caps.pattern_chars:
            where = f"structured_outputs.{key}"
            raise BadInput(f"'{where}' is longer than {caps.pattern_chars} characters.", param=where)


def sticky_key(body: Mapping[str, Any]) -> str:
    """What keeps one caller on one side of a canary: `user` when given, else what is asked.

    Of a conversation only its beginning counts, so that its later turns stay on the version that it began with.
    """
    user = body.get("user")
    if isinstance(user, str) and user:
        return f"user:{user}"
    turns = body.get("messages", body.get("input"))
    start = turns[:2] if isinstance(turns, list) else turns or body.get("prompt")
    return hashlib.sha256(json.dumps(start, sort_keys=True).encode()).hexdigest()
