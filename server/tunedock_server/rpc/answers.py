"""Answers as messages: from the engine's deltas, and from OpenAI's chat completion where tools are involved. Pure."""

from __future__ import annotations

import time
from collections.abc import Iterable

from tunedock_api.jsonpb import Json
from tunedock_api.v1 import inference_pb2 as pb

from ..pool import GenerateDelta, TokenLogprob


def chunk(delta: GenerateDelta) -> pb.GenerateChunk:
    """One step's tokens."""
    choice = pb.ChoiceDelta(
        index=delta.index, text=delta.text, token_ids=delta.token_ids, finish_reason=delta.finish_reason or ""
    )
    if delta.logprobs:
        choice.logprobs.extend(map(_logprob, delta.logprobs))
    return pb.GenerateChunk(choices=[choice])


class Tally:
    """Adds up deltas to the whole answer and its usage."""

    def __init__(self) -> None:
        self._choices: dict[int, pb.Choice] = {}
        self._texts: dict[int, list[str]] = {}
        self._completion_tokens: dict[int, int] = {}
        self._prompt_tokens = 0
        self._cached_tokens = 0

    def count(self, delta: GenerateDelta) -> None:
        """Only what usage needs."""
        self._completion_tokens[delta.index] = delta.completion_tokens
        self._prompt_tokens = delta.prompt_tokens or self._prompt_tokens
        self._cached_tokens = delta.cached_tokens or self._cached_tokens

    def add(self, delta: GenerateDelta) -> None:
        self.count(delta)
        choice = self._choices.setdefault(delta.index, pb.Choice(index=delta.index))
        self._texts.setdefault(delta.index, []).append(delta.text)
        choice.token_ids.extend(delta.token_ids)
        choice.logprobs.extend(map(_logprob, delta.logprobs))
        choice.finish_reason = delta.finish_reason or choice.finish_reason

    def usage(self) -> pb.Usage:
        completion = sum(self._completion_tokens.values())
        return pb.Usage(
            prompt_tokens=self._prompt_tokens,
            completion_tokens=completion,
            total_tokens=self._prompt_tokens + completion,
            cached_tokens=self._cached_tokens,
        )

    def response(self, request_id: str, model: str) -> pb.GenerateResponse:
        for index, texts in self._texts.items():
            self._choices[index].text = "".join(texts)
        choices = [self._choices[index] for index in sorted(self._choices)]
        return pb.GenerateResponse(
            id=request_id, model=model, created=int(time.time()), choices=choices, usage=self.usage()
        )


def response_from_chat(body: Json) -> pb.GenerateResponse:
    """OpenAI's chat completion as our message."""
    choices = [
        pb.Choice(
            index=choice["index"],
            text=choice["message"].get("content") or "",
            token_ids=choice.get("token_ids") or (),
            finish_reason=choice.get("finish_reason") or "",
            tool_calls=map(_tool_call, choice["message"].get("tool_calls") or ()),
        )
        for choice in body["choices"]
    ]
    return pb.GenerateResponse(
        id=body["id"], model=body["model"], created=body["created"], choices=choices, usage=_usage(body["usage"])
    )


def chunks_of(response: pb.GenerateResponse) -> Iterable[pb.GenerateChunk]:
    """A whole answer as a stream of one chunk per choice."""
    for choice in response.choices:
        delta = pb.ChoiceDelta(
            index=choice.index,
            text=choice.text,
            token_ids=choice.token_ids,
            finish_reason=choice.finish_reason,
            tool_calls=choice.tool_calls,
        )
        yield pb.GenerateChunk(id=response.id, model=response.model, created=response.created, choices=[delta])
    yield pb.GenerateChunk(usage=response.usage)


def _usage(usage: Json) -> pb.Usage:
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
    return pb.Usage(
        prompt_tokens=usage["prompt_tokens"],
        completion_tokens=usage.get("completion_tokens") or 0,
        total_tokens=usage["total_tokens"],
        cached_tokens=cached,
    )


def _tool_call(call: Json) -> pb.ToolCall:
    function = call["function"]
    return pb.ToolCall(id=call.get("id") or "", name=function["name"], arguments=function.get("arguments") or "")


def _logprob(token: TokenLogprob) -> pb.TokenLogprob:
    top = [pb.TopLogprob(token_id=token_id, text=text, logprob=value) for token_id, text, value in token.top]
    return pb.TokenLogprob(token_id=token.token_id, text=token.text, logprob=token.logprob, top=top)
