"""Asking: request bodies from plain arguments, replies from OpenAI-shaped answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .operations import Json
from .types import Delta, Reply, Usage

Message = Mapping[str, Any]
Messages = str | Sequence[Message]
Prompt = str | Sequence[int]


def chat_body(messages: Messages, model: str, options: Mapping[str, Any]) -> Json:
    """A bare string is one user message."""
    listed = [{"role": "user", "content": messages}] if isinstance(messages, str) else [dict(m) for m in messages]
    return {"model": model, "messages": listed, **options}


def prompt_body(prompt: Prompt, model: str, options: Mapping[str, Any]) -> Json:
    """`prompt` is text or token ids."""
    return {"model": model, "prompt": prompt if isinstance(prompt, str) else list(prompt), **options}


def streaming(body: Json) -> Json:
    """Asks for token counts with the last piece unless the caller has said otherwise."""
    return {"stream_options": {"include_usage": True}, **body}


def reply_of(answer: Json) -> Reply:
    """The first choice of a chat or text completion."""
    choice: Json = next(iter(answer.get("choices") or ()), {})
    message: Json = choice.get("message") or {}
    return Reply(
        text=message.get("content") or choice.get("text") or "",
        model=answer.get("model", ""),
        finish_reason=choice.get("finish_reason"),
        usage=Usage.model_validate(answer.get("usage") or {}),
        tool_calls=tuple(message.get("tool_calls") or ()),
        raw=answer,
    )


def deltas_of(chunk: Json) -> list[Delta]:
    """One piece per choice of a streamed chunk; the chunk without choices carries the usage."""
    usage = Usage.model_validate(chunk["usage"]) if chunk.get("usage") else None
    model, choices = chunk.get("model", ""), chunk.get("choices") or ()
    if not choices:
        return [Delta(text="", model=model, usage=usage, raw=chunk)] if usage else []
    return [
        Delta(
            text=(choice.get("delta") or {}).get("content") or choice.get("text") or "",
            model=model,
            index=choice.get("index", 0),
            finish_reason=choice.get("finish_reason"),
            usage=usage,
            raw=chunk,
        )
        for choice in choices
    ]
