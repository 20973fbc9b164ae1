"""The same seeded token-id requests for every server: decode, prefill and time to first token, over `/v1/completions`.

Greedy, with `ignore_eos` and fixed lengths, so that every arm does exactly the same work.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from .load import Client, RefusedError

PROMPT_TOKENS, PREFILL_TOKENS, TTFT_TOKENS = 37, 400, 256
NUM_STREAMS, NUM_PREFILLS = 32, 8
VOCABULARY = 40_000


@dataclass
class Traffic:
    """Requests to one server. Every prompt is used once, so that no prefix cache helps."""

    client: Client
    seed: int = 0
    _count: int = field(default=0, init=False)

    async def decode(self, models: Sequence[str], num_tokens: int, num_streams: int = NUM_STREAMS) -> float:
        """Output tokens a second once all streams have their first one; stream i uses model i modulo their number."""
        times = await self._all(models, num_streams, PROMPT_TOKENS, num_tokens)
        begin, end = max(t[0] for _, t in times), max(t[-1] for _, t in times)
        return sum(sum(1 for moment in t if moment > begin) for _, t in times) / (end - begin)

    async def whole(self, models: Sequence[str], num_tokens: int, num_requests: int) -> float:
        """Output tokens a second of as many requests at once, their prompts included."""
        times = await self._all(models, num_requests, PROMPT_TOKENS, num_tokens)
        return num_requests * num_tokens / (max(t[-1] for _, t in times) - min(start for start, _ in times))

    async def prefill(self, models: Sequence[str]) -> float:
        """Prompt tokens a second of several long prompts at once."""
        times = await self._all(models, NUM_PREFILLS, PREFILL_TOKENS, 1)
        return NUM_PREFILLS * PREFILL_TOKENS / (max(t[0] for _, t in times) - min(start for start, _ in times))

    async def first_token_s(self, model: str, prompt_tokens: int = TTFT_TOKENS) -> float:
        """Of one request on an idle server."""
        start, times = await self._one(model, prompt_tokens, 2)
        return times[0] - start

    async def times_s(self, model: str, num_tokens: int) -> list[float]:
        """When the tokens of one stream arrived."""
        return (await self._one(model, PROMPT_TOKENS, num_tokens))[1]

    async def _all(
        self, models: Sequence[str], num: int, prompt_tokens: int, num_tokens: int
    ) -> list[tuple[float, list[float]]]:
        jobs = [self._one(models[i % len(models)], prompt_tokens, num_tokens) for i in range(num)]
        return list(await asyncio.gather(*jobs))

    async def _one(self, model: str, prompt_tokens: int, num_tokens: int) -> tuple[float, list[float]]:
        self._count += 1
        body = {
            "model": model,
            "prompt": prompt(self.seed * 100_003 + self._count, prompt_tokens),
            "max_tokens": num_tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "return_token_ids": True,
        }
        start, times = time.perf_counter(), []
        async for chunk in self._chunks(body):
            now = time.perf_counter()
            times += [now] * sum(len(choice.get("token_ids") or ()) for choice in chunk["choices"])
        if len(times) != num_tokens:
            raise RefusedError(f"{model}: {len(times)} tokens instead of {num_tokens}")
        return start, times

    async def _chunks(self, body: dict[str, Any]) -> Any:
        url = f"{self.client.base_url}/completions"
        async with self.client.session.post(url, json=body) as response:
            if response.status != 200:
                raise RefusedError(f"{response.status} {(await response.text())[:500]}")
            async for line in response.content:
                if line.startswith(b"data: {"):
                    chunk = json.loads(line[6:])
                    if "error" in chunk:
                        raise RefusedError(str(chunk["error"]))
                    yield chunk

    async def logprobs(self, model: str, tokens: Sequence[int]) -> list[float]:
        """Of a given text: what the answers of two servers are compared by."""
        body = {"model": model, "prompt": list(tokens), "max_tokens": 1, "echo": True, "logprobs": 1, "temperature": 0}
        answer = await self.client.call("POST", "/completions", **body)
        return [float(value) for value in answer["choices"][0]["logprobs"]["token_logprobs"][1 : len(tokens)]]


def prompt(number: int, length: int) -> list[int]:
    """Token ids that no other number gives."""
    return [(number * 7_919 + position * 104_729) % VOCABULARY + 10 for position in range(length)]
