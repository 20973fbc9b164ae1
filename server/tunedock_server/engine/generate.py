"""Token deltas for transports of our own (gRPC): the same rendering and sampling as over REST, without SSE strings."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import aclosing
from typing import Any, cast

from vllm import SamplingParams
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.completion.protocol import CompletionRequest
from vllm.entrypoints.serve.engine.protocol import ErrorResponse
from vllm.entrypoints.serve.utils.api_utils import get_max_tokens
from vllm.lora.request import LoRARequest
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.async_llm import AsyncLLM

from ..pool import FinishReason, GenerateDelta, GenerateRequest, Pinned, TokenLogprob
from . import errors, fields
from .openai import OpenAIFrontEnd


async def generate(
    llm: AsyncLLM, front: OpenAIFrontEnd, request: GenerateRequest, pinned: Pinned, lora: LoRARequest | None
) -> AsyncGenerator[GenerateDelta, None]:
    """Raises only TuneDockError; closing the generator aborts the sequence."""
    try:
        prompt, params = await _render(llm, front, request, pinned)
        produced: dict[int, int] = {}
        async with aclosing(llm.generate(prompt, params, request.request_id, lora_request=lora)) as outputs:
            async for output in outputs:
                for delta in _deltas(output, produced):
                    yield delta
    except Exception as error:  # edge to vLLM
        raise errors.from_exception(error) from error


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
