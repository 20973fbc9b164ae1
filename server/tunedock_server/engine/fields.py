"""Which fields of a caller's request body reach vLLM: an accept-list, pure and free of vLLM.

vLLM's request models take many fields that a caller must not set (templates, cache salts, transfer parameters). Those
are refused by name; other unknown fields are ignored, as OpenAI does. Then the version's serving profile fills gaps.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tunedock_api.errors import BadInput
from tunedock_api.manifest import ServingProfile

_SAMPLING = frozenset({
    "frequency_penalty", "logit_bias", "max_tokens", "n", "presence_penalty", "seed", "stop", "stream", "stream_options",
    "temperature", "top_p", "user", "top_k", "min_p", "repetition_penalty", "stop_token_ids", "include_stop_str_in_output",
    "ignore_eos", "min_tokens", "skip_special_tokens", "allowed_token_ids", "bad_words", "response_format", "logprobs",
    "echo", "structured_outputs", "return_token_ids",
})  # fmt: skip
CHAT = _SAMPLING | {
    "messages", "max_completion_tokens", "top_logprobs", "tools", "tool_choice", "parallel_tool_calls",
    "reasoning_effort", "chat_template_kwargs", "add_generation_prompt", "continue_final_message",
}  # fmt: skip
COMPLETION = _SAMPLING | {"prompt", "add_special_tokens"}

REFUSED = frozenset({
    "chat_template", "mm_processor_kwargs", "media_io_kwargs", "prompt_embeds", "cache_salt", "kv_transfer_params",
    "ec_transfer_params", "vllm_xargs", "priority", "request_id", "session_id", "use_beam_search", "documents", "best_of",
    "truncate_prompt_tokens", "prompt_logprobs", "mm_payload", "return_mm_kwargs", "repetition_detection",
})  # fmt: skip

MAX_LOGPROBS = 20
MAX_STOPS = 16
MAX_STOP_CHARS = 1_024
MAX_SCHEMA_CHARS = 65_536


def clean(body: Mapping[str, Any], accepted: frozenset[str], max_n: int) -> dict[str, Any]:
    """A new body with accepted, non-null fields only. Raises BadInput for refused fields and values out of bounds."""
    for name in REFUSED & body.keys():
        if body[name] is not None:
            raise BadInput(f"{name} cannot be set by the caller.", param=name)
    kept = {name: value for name, value in body.items() if name in accepted and value is not None}
    if "chat_template" in (kept.get("chat_template_kwargs") or {}):
        raise BadInput("chat_template cannot be set by the caller.", param="chat_template_kwargs.chat_template")
    _check_number(kept, "n", 1, max_n)
    _check_number(kept, "top_logprobs", 0, MAX_LOGPROBS)
    _check_number(kept, "logprobs", 0, MAX_LOGPROBS)
    _check_number(kept, "max_tokens", 0, 1 << 24)
    _check_number(kept, "max_completion_tokens", 0, 1 << 24)
    _check_stop(kept)
    _check_structure(kept)
    return kept


def _check_number(body: Mapping[str, Any], name: str, low: int, high: int) -> None:
    value = body.get(name)
    if value is None or isinstance(value, bool):
        return
    if not isinstance(value, int) or not low <= value <= high:
        raise BadInput(f"{name} must be a whole number from {low} to {high}; it is {str(value)[:40]!r}.", param=name)


def _check_stop(body: Mapping[str, Any]) -> None:
    stop = body.get("stop", [])
    stops = [stop] if isinstance(stop, str) else stop
    if not isinstance(stops, list) or len(stops) > MAX_STOPS:
        raise BadInput(f"stop must be a string or a list of at most {MAX_STOPS} strings.", param="stop")
    if any(not isinstance(item, str) or not 0 < len(item) <= MAX_STOP_CHARS for item in stops):
        raise BadInput(f"each stop must be a string of 1 to {MAX_STOP_CHARS} characters.", param="stop")


def _check_structure(body: Mapping[str, Any]) -> None:
    for name in ("response_format", "structured_outputs", "tools", "text"):
        if len(str(body.get(name, ""))) > MAX_SCHEMA_CHARS:
            raise BadInput(f"{name} is longer than {MAX_SCHEMA_CHARS} characters.", param=name)


def apply_profile(body: dict[str, Any], profile: ServingProfile | None) -> dict[str, Any]:
    """Fills what `body` leaves open. The caller's own fields win; a caller's system message replaces the profile's."""
    if profile is None:
        return body
    limits = {"max_tokens", "max_completion_tokens"}
    defaults = {k: v for k, v in profile.sampling.items() if k not in limits or not limits & body.keys()}
    merged: dict[str, Any] = {**defaults, **body}
    if profile.stop and "stop" not in body:
        merged["stop"] = list(profile.stop)
    if "messages" in body:
        if profile.chat_template_kwargs:
            merged["chat_template_kwargs"] = {**profile.chat_template_kwargs, **body.get("chat_template_kwargs", {})}
        merged["messages"] = _with_system(body["messages"], profile.system_prompt)
    return merged


def _with_system(messages: Any, system_prompt: str | None) -> Any:
    if system_prompt is None or not isinstance(messages, list):
        return messages
    if any(isinstance(m, Mapping) and m.get("role") in ("system", "developer") for m in messages):
        return messages
    return [{"role": "system", "content": system_prompt}, *messages]
