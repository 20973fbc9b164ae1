"""Which fields of a Responses request reach vLLM, and what a version's profile adds. Pure and free of vLLM.

Nothing is kept between requests: whatever needs a stored response is refused by name, and `store` is ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tunedock_api.errors import BadInput
from tunedock_api.manifest import ServingProfile

RESPONSES = frozenset({
    "input", "instructions", "max_output_tokens", "metadata", "parallel_tool_calls", "text", "tool_choice", "tools",
    "top_logprobs", "include", "temperature", "top_p", "stream", "user", "reasoning", "truncation", "seed", "stop",
    "stop_token_ids", "ignore_eos", "top_k", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty",
    "logit_bias", "skip_special_tokens", "include_stop_str_in_output", "structured_outputs", "chat_template_kwargs",
})  # fmt: skip
_STATEFUL = ("previous_response_id", "conversation", "background", "prompt")
_INSTRUCTING = frozenset({"system", "developer"})


def refuse(body: Mapping[str, Any]) -> None:
    """Raises BadInput for what this server cannot do, with the field's name."""
    for name in _STATEFUL:
        if body.get(name):
            raise BadInput(
                f"'{name}' needs stored responses, and this server stores none: send the whole conversation in 'input'.",
                param=name,
            )
    if not body.get("input") or not isinstance(body["input"], str | list):
        raise BadInput("'input' must be a text or a list of items, and not empty.", param="input")
    tools = body.get("tools")
    for index, tool in enumerate(tools if isinstance(tools, list) else ()):
        kind = tool.get("type") if isinstance(tool, dict) else None
        if kind != "function":
            where = f"tools[{index}].type"
            raise BadInput(
                f"'{where}' is {str(kind)[:40]!r}; this server runs no tools, so only 'function' can be asked for.",
                param=where,
            )


def apply_profile(body: dict[str, Any], profile: ServingProfile | None) -> dict[str, Any]:
    """Fills what `body` leaves open, as `fields.apply_profile` does for chats."""
    if profile is None:
        return body
    sampling = dict(profile.sampling)
    limits = [sampling.pop(name, None) for name in ("max_completion_tokens", "max_tokens")]
    limit = next((value for value in limits if value is not None), None)
    defaults: dict[str, Any] = {name: value for name, value in sampling.items() if name in RESPONSES}
    defaults |= {"max_output_tokens": limit} if limit is not None else {}
    defaults |= {"stop": list(profile.stop)} if profile.stop else {}
    if profile.system_prompt is not None and not _instructs(body["input"]):
        defaults["instructions"] = profile.system_prompt
    merged = {**defaults, **body}
    if profile.chat_template_kwargs:
        merged["chat_template_kwargs"] = {**profile.chat_template_kwargs, **body.get("chat_template_kwargs", {})}
    return merged


def _instructs(given: Any) -> bool:
    """Whether the caller's own input says what `instructions` would."""
    items = given if isinstance(given, list) else []
    return any(isinstance(item, Mapping) and item.get("role") in _INSTRUCTING for item in items)
