"""Log-probabilities of a given text, by the serving engine itself (publish gate)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vllm import SamplingParams, TokensPrompt
from vllm.lora.request import LoRARequest
from vllm.v1.engine.async_llm import AsyncLLM

from ..pool import Scores


async def score(llm: AsyncLLM, token_ids: Sequence[int], lora: LoRARequest | None, request_id: str) -> Scores:
    """One prefill with the likeliest token at each place; the one generated token is thrown away."""
    params = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=1, detokenize=False)
    prompt = TokensPrompt(prompt_token_ids=list(token_ids))
    final: Any = None
    async for output in llm.generate(prompt, params, request_id, lora_request=lora):
        final = output
    return _scores(token_ids, final.prompt_logprobs)


def _scores(token_ids: Sequence[int], prompt_logprobs: Sequence[Mapping[int, Any] | None]) -> Scores:
    """vLLM gives None for the first place, then token -> Logprob with the actual token and the likeliest one."""
    places = [(token, at) for token, at in zip(token_ids, prompt_logprobs, strict=True) if at is not None]
    return Scores(
        logprobs=tuple(float(at[token].logprob) for token, at in places),
        top1=tuple(min(at, key=lambda candidate: at[candidate].rank) for _, at in places),
    )
