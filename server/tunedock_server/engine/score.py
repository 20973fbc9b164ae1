"""Log-probabilities of a given text, by the serving engine itself (publish gate).

A long text in one step would hold up every stream: each place costs a row of logits over the whole vocabulary besides its
prefill. So a long text is scored in windows, each one request whose beginning comes from the prefix cache.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from vllm import SamplingParams, TokensPrompt
from vllm.lora.request import LoRARequest
from vllm.outputs import RequestOutput
from vllm.v1.engine.async_llm import AsyncLLM

from ..pool import Scores

WINDOW_TOKENS = 128
"""A multiple of the cache's blocks (16 tokens, on CPU 128): a part of a block is computed again by the next window."""
Places = Sequence[tuple[int, Mapping[int, Any]]]


async def score(llm: AsyncLLM, token_ids: Sequence[int], lora: LoRARequest | None, request_id: str) -> Scores:
    """The window that begins at b says what the tokens b + 1 to b + WINDOW_TOKENS cost."""
    salt = uuid.uuid4().hex
    places: list[tuple[int, Mapping[int, Any]]] = []
    for begin in range(0, len(token_ids) - 1, WINDOW_TOKENS):
        known = list(token_ids[: begin + WINDOW_TOKENS + 1])
        # Under a salt of its own it reads nothing from the cache but its own earlier windows, of which nothing is asked.
        prompt = TokensPrompt(prompt_token_ids=known, cache_salt=salt)
        output = await _prefill(llm, prompt, f"{request_id}-{begin}", lora)
        if output.prompt_logprobs is None or (output.num_cached_tokens or 0) > begin:
            raise RuntimeError("vLLM scored fewer tokens than it was asked for")
        found = zip(known, output.prompt_logprobs, strict=True)
        places += [(token, at) for token, at in list(found)[begin + 1 :] if at is not None]
    return _scores(places)


async def _prefill(llm: AsyncLLM, prompt: TokensPrompt, request_id: str, lora: LoRARequest | None) -> RequestOutput:
    """The likeliest token at each place that was not cached; the one generated token is thrown away."""
    params = SamplingParams(
        max_tokens=1, temperature=0.0, prompt_logprobs=1, detokenize=False, skip_reading_prefix_cache=False
    )
    outputs = [output async for output in llm.generate(prompt, params, request_id, lora_request=lora)]
    return outputs[-1]


def _scores(places: Places) -> Scores:
    """vLLM gives, for each place, token -> Logprob with the actual token and the likeliest one."""
    return Scores(
        logprobs=tuple(float(at[token].logprob) for token, at in places),
        top1=tuple(min(at, key=lambda candidate: at[candidate].rank) for _, at in places),
    )
