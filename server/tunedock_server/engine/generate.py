"""Token deltas for transports of our own (gRPC): the same rendering and sampling as over REST, without SSE strings."""

from __future__ import annotations

import asyncio
from asyncio import Future
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from typing import Any, NoReturn, cast

from vllm import SamplingParams
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.completion.protocol import CompletionRequest
from vllm.entrypoints.serve.engine.protocol import ErrorResponse
from vllm.entrypoints.serve.utils.api_utils import get_max_tokens
from vllm.lora.request import LoRARequest
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.output_processor import RequestOutputCollector

from ..pool import FinishReason, Full, GenerateDelta, GenerateRequest, Pinned, Take, TokenLogprob
from . import errors, fields
from .openai import OpenAIFrontEnd

Enter = Callable[[], tuple[LoRARequest | None, Callable[[], None]]]


class Deltas(AsyncGenerator[GenerateDelta, None]):
    """One answer, to be iterated or poured. Closing it aborts the sequence. Raises only TuneDockError."""

    def __init__(
        self, llm: AsyncLLM, front: OpenAIFrontEnd, request: GenerateRequest, pinned: Pinned, enter: Enter
    ) -> None:
        """`enter` is called when the answer begins, and what it returns beside the adapter once when it is over."""
        self._llm = llm
        self._front = front
        self._request = request
        self._pinned = pinned
        self._enter = enter
        self._leave: Callable[[], None] | None = None
        self._outputs: RequestOutputCollector | None = None
        self._ready: deque[GenerateDelta] = deque()
        self._produced: dict[int, int] = {}
        self._finished = False

    async def asend(self, value: None = None) -> GenerateDelta:
        try:
            while not self._ready and not self._finished:
                outputs = self._outputs or await self._begin()
                self._accept(outputs.get_nowait() or await outputs.get())
        except BaseException as error:
            await self._fail(error)
        if not self._ready:
            raise StopAsyncIteration
        return self._ready.popleft()

    __anext__ = asend

    async def pour(self, take: Take[GenerateDelta]) -> None:
        """See `Pours`. Here `take` is called by vLLM's own task, so that no task of ours is woken for a token."""
        try:
            while self._ready or not self._finished:
                if (full := await self._step(take)) is not None:
                    await full()
        except BaseException as error:
            await self._fail(error)

    async def _step(self, take: Take[GenerateDelta]) -> Full:
        if self._ready:
            return take(self._ready.popleft())
        outputs = self._outputs or await self._begin()
        if (output := outputs.get_nowait()) is None:
            return await self._pushed(outputs, take)
        self._accept(output)
        return None

    async def athrow(self, *error: Any) -> GenerateDelta:
        await self.aclose()
        raise error[0]

    async def aclose(self) -> None:
        """Safe to call twice."""
        outputs, finished, self._finished = self._outputs, self._finished, True
        self._ready.clear()
        try:
            if outputs is not None and not finished and not self._llm.errored:
                await self._llm.abort(outputs.request_id, internal=True)
        finally:
            self._over()

    async def _fail(self, error: BaseException) -> NoReturn:
        """Nothing goes on after an error or a cancellation. This is the edge to vLLM: its errors become ours."""
        await self.aclose()
        if isinstance(error, Exception):
            raise errors.from_exception(error) from error
        raise error

    async def _begin(self) -> RequestOutputCollector:
        lora, self._leave = self._enter()
        prompt, params = await _render(self._llm, self._front, self._request, self._pinned)
        self._outputs = await self._llm.add_request(self._request.request_id, prompt, params, lora_request=lora)
        return self._outputs

    def _accept(self, output: Any) -> None:
        self._ready.extend(_deltas(output, self._produced))
        if output.finished:
            self._finished = True
            self._over()

    def _over(self) -> None:
        leave, self._leave = self._leave, None
        if leave is not None:
            leave()

    async def _pushed(self, outputs: RequestOutputCollector, take: Take[GenerateDelta]) -> Full:
        """Lets vLLM put into `take` until the end, an error, or something to await. An output that comes after that is
        collected as usual, joined with the next ones."""
        turn: Future[Full] = asyncio.get_running_loop().create_future()

        def push(output: Any) -> None:
            if turn.done():
                type(outputs).put(outputs, output)
                return
            try:
                if isinstance(output, Exception):
                    raise output
                self._accept(output)
                full: Full = None
                while self._ready and full is None:
                    full = take(self._ready.popleft())
                if full is not None or self._finished:
                    turn.set_result(full)
            except Exception as error:  # vLLM's task works for all requests: it must not end by one of them
                turn.set_exception(error)

        outputs.put = push
        try:
            return await turn
        finally:
            del outputs.put


async def _render(
    llm: AsyncLLM, front: OpenAIFrontEnd, request: GenerateRequest, pinned: Pinned
) -> tuple[Any, SamplingParams]:
    llm.check_admission(request.sampling.n)
    body = request.body()
    parsed: ChatCompletionRequest | CompletionRequest
    if request.messages is not None:
        parsed = front.chat_request(body, pinned, request.request_id)
        rendered = await front.renderer.render_chat(parsed)
    else:
        cleaned = fields.apply_profile(fields.clean(body, fields.COMPLETION, front.max_n), pinned.profile)
        parsed = CompletionRequest.model_validate({"max_tokens": None, **cleaned})
        rendered = await front.renderer.render_completion(parsed)
    if isinstance(rendered, ErrorResponse):
        raise errors.from_response(rendered.error.model_dump())
    (prompt,) = rendered[1] if isinstance(rendered, tuple) else rendered
    defaults = llm.model_config.get_diff_sampling_param()
    most = getattr(parsed, "max_completion_tokens", None) or parsed.max_tokens
    room = get_max_tokens(llm.model_config.max_model_len, most, len(prompt["prompt_token_ids"]), defaults)
    params = parsed.to_sampling_params(room, defaults)
    params.output_kind = RequestOutputKind.DELTA
    return prompt, params


def _deltas(output: Any, produced: dict[int, int]) -> Iterator[GenerateDelta]:
    """Of one step (a RequestOutput); `produced` counts the tokens of every answer so far."""
    prompt_tokens = len(output.prompt_token_ids or ())
    last = output.outputs[-1]
    for part in output.outputs:
        produced[part.index] = produced.get(part.index, 0) + len(part.token_ids)
        yield GenerateDelta(
            index=part.index,
            text=part.text,
            token_ids=tuple(part.token_ids),
            logprobs=_logprobs(part.token_ids, part.logprobs),
            finish_reason=_finish_reason(part.finish_reason),
            prompt_tokens=prompt_tokens,
            cached_tokens=output.num_cached_tokens or 0,
            completion_tokens=produced[part.index],
            more=part is not last,
        )


def _finish_reason(reason: str | None) -> FinishReason | None:
    if reason not in (None, "stop", "length"):
        raise errors.engine_down() if reason == "abort" else RuntimeError(f"generation ended with {reason}")
    return cast(FinishReason | None, reason)


def _logprobs(token_ids: Sequence[int], at: Sequence[Mapping[int, Any]] | None) -> tuple[TokenLogprob, ...]:
    if at is None:
        return ()
    return tuple(_token_logprob(token, candidates) for token, candidates in zip(token_ids, at, strict=True))


def _token_logprob(token: int, candidates: Mapping[int, Any]) -> TokenLogprob:
    ranked = sorted(candidates.items(), key=lambda item: item[1].rank)
    top = tuple((candidate, item.decoded_token or "", float(item.logprob)) for candidate, item in ranked)
    chosen = candidates[token]
    return TokenLogprob(token, chosen.decoded_token or "", float(chosen.logprob), top)
