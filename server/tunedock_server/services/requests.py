"""What of a caller's inference request may reach the engine. Pure.

vLLM's request models accept many private extensions (templates, transfer parameters, salts, tensors), several of which
were security holes. So fields pass an accept-list; dangerous ones are answered 400, other unknown ones are dropped.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tunedock_api.errors import BadInput


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


_COMMON = _names(
    "model frequency_penalty logit_bias logprobs max_tokens n presence_penalty seed stop stream stream_options temperature "
    "top_p user response_format structured_outputs top_k min_p repetition_penalty length_penalty stop_token_ids "
    "include_stop_str_in_output ignore_eos min_tokens skip_special_tokens spaces_between_special_tokens "
    "truncate_prompt_tokens prompt_logprobs allowed_token_ids bad_words add_special_tokens return_token_ids"
)
CHAT_FIELDS = _COMMON | _names(
    "messages top_logprobs max_completion_tokens tools tool_choice parallel_tool_calls reasoning_effort echo "
    "add_generation_prompt continue_final_message chat_template_kwargs include_reasoning"
)
COMPLETION_FIELDS = _COMMON | _names("prompt best_of echo suffix")
REFUSED = _names(
    "chat_template mm_processor_kwargs media_io_kwargs prompt_embeds cache_salt kv_transfer_params ec_transfer_params "
    "vllm_xargs use_beam_search documents request_id priority data_parallel_rank logits_processors guided_json "
    "guided_regex guided_choice guided_grammar"
)
_REFUSED_TEMPLATE_KWARGS = frozenset({"chat_template", "tokenize", "conversation", "messages", "tools"})


@dataclass(frozen=True)
class RequestCaps:
    """The largest values that one request may ask for."""

    max_tokens: int = 32_768
    n: int = 16
    logprobs: int = 20
    stops: int = 16
    stop_chars: int = 1_024
    prompts: int = 256
    messages: int = 4_096
    tools: int = 128
    schema_chars: int = 65_536
    pattern_chars: int = 4_096
    list_items: int = 1_024


def clean(body: Any, accepted: frozenset[str], caps: RequestCaps) -> dict[str, Any]:
    """The accepted, checked fields; None values are dropped. Raises BadInput with the field's name."""
    if not isinstance(body, dict):
        raise BadInput("The body must be a JSON object.")
    refused = sorted(field for field in REFUSED & body.keys() if body[field] is not None)
    if refused:
        raise BadInput(f"The field '{refused[0]}' is not accepted by this server.", param=refused[0])
    chosen = {name: value for name, value in body.items() if name in accepted and value is not None}
    _check_model(chosen.get("model"))
    _check_numbers(chosen, caps)
    _check_lists(chosen, caps)
    _check_template_kwargs(chosen.get("chat_template_kwargs"))
    _check_formats(chosen, caps)
    return chosen


def _check_model(model: Any) -> None:
    if not isinstance(model, str) or not model:
        raise BadInput("You must provide a model parameter: GET /v1/models lists what there is.", param="model")


def _check_numbers(body: Mapping[str, Any], caps: RequestCaps) -> None:
    for name, low, high in (
        ("n", 1, caps.n),
        ("best_of", 1, caps.n),
        ("top_logprobs", 0, caps.logprobs),
        ("prompt_logprobs", 0, caps.logprobs),
        ("max_tokens", 0, caps.max_tokens),
        ("max_completion_tokens", 0, caps.max_tokens),
        ("min_tokens", 0, caps.max_tokens),
    ):
        if name in body:
            _whole(name, body[name], low, high)
    logprobs = body.get("logprobs")
    if logprobs is not None and not isinstance(logprobs, bool):
        _whole("logprobs", logprobs, 0, caps.logprobs)
    if not isinstance(body.get("stream", False), bool):
        raise BadInput("'stream' must be true or false.", param="stream")


def _whole(name: str, value: Any, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise BadInput(f"'{name}' must be a whole number from {low} to {high}.", param=name)


def _check_lists(body: Mapping[str, Any], caps: RequestCaps) -> None:
    stop = body.get("stop", [])
    stops = [stop] if isinstance(stop, str) else stop
    if not isinstance(stops, list) or len(stops) > caps.stops:
        raise BadInput(f"'stop' must be a string or a list of at most {caps.stops} strings.", param="stop")
    if not all(isinstance(text, str) and len(text) <= caps.stop_chars for text in stops):
        raise BadInput(f"Every 'stop' must be a string of at most {caps.stop_chars} characters.", param="stop")
    for name, most in (
        ("messages", caps.messages),
        ("tools", caps.tools),
        ("stop_token_ids", caps.list_items),
        ("allowed_token_ids", 100 * caps.list_items),
        ("bad_words", caps.list_items),
        ("logit_bias", caps.list_items),
    ):
        value = body.get(name, ())
        if isinstance(value, (list, dict)) and len(value) > most:
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
        if key in _REFUSED_TEMPLATE_KWARGS or not isinstance(value, (bool, int, float, str, type(None))):
            where = f"chat_template_kwargs.{key[:64]}"
            raise BadInput(f"'{where}' is not accepted by this server.", param=where)


def _check_formats(body: Mapping[str, Any], caps: RequestCaps) -> None:
    """Schemas and patterns are compiled by the engine, so their size is bounded before they get there."""
    for name in ("response_format", "structured_outputs", "tools"):
        if name in body and len(json.dumps(body[name])) > caps.schema_chars * (4 if name == "tools" else 1):
            raise BadInput(f"'{name}' is larger than {caps.schema_chars} characters of JSON.", param=name)
    structured = body.get("structured_outputs")
    if isinstance(structured, dict):
        for key in ("regex", "grammar"):
            if len(str(structured.get(key) or "")) > caps.pattern_chars:
                where = f"structured_outputs.{key}"
                raise BadInput(f"'{where}' is longer than {caps.pattern_chars} characters.", param=where)


def sticky_key(body: Mapping[str, Any]) -> str:
    """What keeps one caller on one side of a canary: `user` when given, else what is asked.

    Of a conversation only its beginning counts, so that its later turns stay on the version that it began with.
    """
    user = body.get("user")
    if isinstance(user, str) and user:
        return f"user:{user}"
    messages = body.get("messages")
    start = messages[:2] if isinstance(messages, list) else body.get("prompt")
    return hashlib.sha256(json.dumps(start, sort_keys=True).encode()).hexdigest()
