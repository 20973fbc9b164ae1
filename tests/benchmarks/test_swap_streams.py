"""The interval of the p99 ratio: as wide as what was measured allows."""

from __future__ import annotations

import random

from benchmarks.load import Answer
from benchmarks.swap_streams import EVERY_S, Run, ratio_interval

NUM_STRETCHES, NUM_TOKENS = 30, 200


def answers(slow_ms: float, slow_stretches: int) -> list[Answer]:
    """Gaps of 30 to 60 ms; in some stretches every tenth gap is slow."""
    rng, found = random.Random(3), []
    for stretch in range(NUM_STRETCHES):
        slow = stretch < slow_stretches
        gaps = [slow_ms if slow and n % 10 == 0 else rng.uniform(30, 60) for n in range(NUM_TOKENS)]
        begin = stretch * EVERY_S
        times = [begin]
        for gap in gaps:
            times.append(times[-1] + gap / 1000 * EVERY_S / 12)  # all end inside the stretch
        found.append(Answer("m", begin, tuple(times), frozenset({"m"}), ""))
    return found


def test_two_alike_loads_have_an_interval_around_one() -> None:
    low, high = ratio_interval(Run(quiet=answers(0, 0), pushing=answers(0, 0)))
    assert 0.95 < low <= 1 <= high < 1.05


def test_what_is_slow_in_every_push_is_told_with_certainty() -> None:
    low, high = ratio_interval(Run(quiet=answers(0, 0), pushing=answers(90, NUM_STRETCHES)))
    assert 1.4 < low <= high < 1.6


def test_what_few_pushes_show_is_told_with_doubt() -> None:
    low, high = ratio_interval(Run(quiet=answers(0, 0), pushing=answers(90, 3)))
    assert low < 1.1
    assert high > 1.4
