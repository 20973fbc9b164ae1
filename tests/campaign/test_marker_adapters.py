"""Every answer is its version's golden answer while versions come and go, with more adapters than slots."""

from __future__ import annotations

import time

import pytest
from support.live_server import Live
from support.marker_traffic import BLOCK_TOKENS, Board, Callers, Rollouts

from benchmarks.markers import Marker

CACHE_HITS = "vllm:prefix_cache_hits_total"  # in tokens
NAMES = tuple(f"marker-{letter}" for letter in "abcdefgh")  # 8 adapters and their versions on 4 slots


def run(live: Live, markers: list[Marker], prefix: str, num_answers: int, limit_s: float) -> None:
    board = Board()
    rollouts = Rollouts(live, board, markers, tuple(f"{prefix}{name}" for name in NAMES))
    rollouts.begin()
    before = live.metric(CACHE_HITS)
    deadline = time.monotonic() + limit_s
    with Callers(live.openai, board) as callers:
        while len(callers.said) < num_answers and not callers.wrong():
            assert time.monotonic() < deadline, f"too slow: {callers.summary()} in {limit_s:g} s"
            rollouts.step()
    hits = (live.metric(CACHE_HITS) - before) / BLOCK_TOKENS
    print(f"{callers.summary()}, {rollouts.num_steps} steps, {hits:.0f} prefix cache hits")
    assert callers.wrong() == []
    assert hits > num_answers / 2, "prefix caching is on, and prompts are long enough for it"
    answered = {said.model for said in callers.said if not said.code}
    assert rollouts.num_steps >= 20
    assert len(answered) > 2 * len(NAMES), "the versions changed under the callers"


@pytest.mark.campaign
def test_six_hundred_answers_under_push_promote_rollback_and_delete(live: Live, markers: list[Marker]) -> None:
    # Without bfloat16 products an answer takes two seconds on two cores, and 600 to twelve callers over 90.
    run(live, markers, "", 600, 400)


@pytest.mark.slow
@pytest.mark.timeout(4000)
def test_twenty_thousand_answers_under_push_promote_rollback_and_delete(live: Live, markers: list[Marker]) -> None:
    run(live, markers, "long-", 20_000, 3_600)
