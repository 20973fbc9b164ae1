"""Answers as messages: from the engine's deltas, and from OpenAI's chat completion where tools are involved. Pure."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence

from tunedock_api.jsonpb import Json
from tunedock_api.v1 import inference_pb2 as pb

from ..pool import GenerateDelta, TokenLogprob


def add_delta(chunk: pb.GenerateChunk, delta: GenerateDelta) -> None:
    """Fills `chunk` in place: what is built here once per token is all that a token costs in objects."""
    choice = chunk.choices.add()
    if delta.index:
        choice.index = delta.index
    choice.text = delta.text
    choice.token_ids.extend(delta.token_ids)
    if delta.logprobs:
        choice.logprobs.extend(map(_logprob, delta.logprobs))
    if delta.finish_reason:
        choice.finish_reason = delta.finish_reason


def add_event(chunk: pb.GenerateChunk, event: Json) -> None:
    """OpenAI's chat completion chunk, for answers that may hold tool calls."""
    for shown in event["choices"]:
        delta, ids = shown["delta"], shown.get("token_ids") or ()
        choice = chunk.choices.add(index=shown["index"], text=delta.get("content") or "", token_ids=ids)
        choice.finish_reason = shown.get("finish_reason") or ""
        choice.tool_calls.extend(map(_tool_call, delta.get("tool_calls") or ()))
        choice.logprobs.extend(_shown_logprobs(shown, ids))
    if event.get("usage"):
        chunk.usage.CopyFrom(_usage(event["usage"]))


def usage_of(last: Iterable[GenerateDelta]) -> pb.Usage:
    """From the last delta of every answer: deltas carry the totals so far."""
    prompt = cached = completion = 0
    for delta in last:
        prompt, cached = max(prompt, delta.prompt_tokens), max(cached, delta.cached_tokens)
        completion += delta.completion_tokens
    return pb.Usage(
        prompt_tokens=prompt, completion_tokens=completion, total_tokens=prompt + completion, cached_tokens=cached
    )


class Tally:
    """Adds up deltas to the whole answer and its usage."""

    def __init__(self) -> None:
        self._choices: dict[int, pb.Choice] = {}
        self._texts: dict[int, list[str]] = {}
        self._last: dict[int, GenerateDelta] = {}

    def add(self, delta: GenerateDelta) -> None:
        self._last[delta.index] = delta
        choice = self._choices.setdefault(delta.index, pb.Choice(index=delta.index))
        self._texts.setdefault(delta.index, []).append(delta.text)
        choice.token_ids.extend(delta.token_ids)
        choice.logprobs.extend(map(_logprob, delta.logprobs))
        choice.finish_reason = delta.finish_reason or choice.finish_reason

    def response(self, request_id: str, model: str) -> pb.GenerateResponse:
        for index, texts in self._texts.items():
            self._choices[index].text = "".join(texts)
        choices = [self._choices[index] for index in sorted(self._choices)]
        return pb.GenerateResponse(
            id=request_id, model=model, created=int(time.time()), choices=choices, usage=usage_of(self._last.values())
        )


def response_from_chat(body: Json) -> pb.GenerateResponse:
    """OpenAI's chat completion as our message."""
    choices = [
        pb.Choice(
            index=choice["index"],
            text=choice["message"].get("content") or "",
            token_ids=choice.get("token_ids") or (),
            logprobs=_shown_logprobs(choice, choice.get("token_ids") or ()),
            finish_reason=choice.get("finish_reason") or "",
            tool_calls=map(_tool_call, choice["message"].get("tool_calls") or ()),
        )
        for choice in body["choices"]
    ]
    return pb.GenerateResponse(
        id=body["id"], model=body["model"], created=body["created"], choices=choices, usage=_usage(body["usage"])
    )


def _usage(usage: Json) -> pb.Usage:
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
    return pb.Usage(
        prompt_tokens=usage["prompt_tokens"],
        completion_tokens=usage.get("completion_tokens") or 0,
        total_tokens=usage["total_tokens"],
        cached_tokens=cached,
    )


def _tool_call(call: Json) -> pb.ToolCall:
    """A call, or the next piece of one."""
    function = call.get("function") or {}
    return pb.ToolCall(
        id=call.get("id") or "",
        name=function.get("name") or "",
        arguments=function.get("arguments") or "",
        index=call.get("index") or 0,
    )


def _shown_logprobs(choice: Json, token_ids: Sequence[int]) -> list[pb.TokenLogprob]:
    """OpenAI names tokens by their text; the ids of the chosen ones stand beside them."""
    tokens = (choice.get("logprobs") or {}).get("content") or ()
    return [
        pb.TokenLogprob(
            token_id=token_id,
            text=token["token"],
            logprob=token["logprob"],
            top=[pb.TopLogprob(text=one["token"], logprob=one["logprob"]) for one in token["top_logprobs"]],
        )
        for token_id, token in zip(token_ids, tokens, strict=False)
    ]


def _logprob(token: TokenLogprob) -> pb.TokenLogprob:
    top = [pb.TopLogprob(token_id=token_id, text=text, logprob=value) for token_id, text, value in token.top]
    return pb.TokenLogprob(token_id=token.token_id, text=token.text, logprob=token.logprob, top=top)
