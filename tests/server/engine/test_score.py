"""What the gate measures with: scores in windows are those of one pass over the text."""

from __future__ import annotations

import random

import pytest
from tunedock_server.engine.score import WINDOW_TOKENS
from tunedock_server.pool import EnginePool, Pinned


def text(length: int, seed: int) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(100, 40_000) for _ in range(length)]


async def echoed(engine: EnginePool, tokens: list[int], pinned: Pinned) -> list[float]:
    body = {"prompt": tokens, "max_tokens": 0, "echo": True, "logprobs": 1, "temperature": 0}
    answer = await engine.complete(body, pinned, "echo")
    assert isinstance(answer, dict)
    numbers: list[float] = answer["choices"][0]["logprobs"]["token_logprobs"][1:]
    return numbers


@pytest.mark.parametrize("length", [2, WINDOW_TOKENS, WINDOW_TOKENS + 1, WINDOW_TOKENS + 2, 3 * WINDOW_TOKENS + 7])
async def test_a_text_is_scored_as_in_one_pass_whatever_its_length(
    float32: EnginePool, versions: tuple[Pinned, ...], length: int
) -> None:
    tokens = text(length, seed=length)
    scores = await float32.score(tokens, versions[0])
    assert scores.logprobs == pytest.approx(await echoed(float32, tokens, versions[0]), abs=1e-3)
    assert len(scores.top1) == length - 1


async def test_what_others_left_in_the_prefix_cache_changes_no_score(
    float32: EnginePool, versions: tuple[Pinned, ...]
) -> None:
    tokens = text(3 * WINDOW_TOKENS, seed=1)
    first = await float32.score(tokens, versions[1])
    await float32.complete({"prompt": tokens, "max_tokens": 1}, versions[1], "caches-all-of-it")
    assert await float32.score(tokens, versions[1]) == first
