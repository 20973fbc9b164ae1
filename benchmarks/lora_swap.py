"""The longest gap in somebody else's stream while an adapter is loaded, by the call of each server that does nothing else.

Neither server has it in memory before, both have it in the page cache; ours has had it once, as after every publish gate. What a
whole publish costs other streams, gate included, is in the `swap` benchmark. The longest gap of as many moments without a load
says what of it is the server's own unrest.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Sequence

from tunedock_registry.models import DEFAULT_MODEL

from .figures import Figure, bootstrap
from .lora_adapters import Adapter
from .lora_arms import Arm
from .servers import Ours

STREAM_TOKENS, QUIET_S, AFTER_S = 800, 0.5, 0.3
MAX_SHARE, MAX_STALL_S = 0.05, 0.002


async def measure(mine: Arm, stock: Arm, fresh: Sequence[Adapter]) -> list[Figure]:
    await _seen_once(mine, fresh)
    (my_stalls, my_unrest), (their_stalls, their_unrest) = await _stalls(mine, fresh), await _stalls(stock, fresh)
    median, theirs = statistics.median(my_stalls), statistics.median(their_stalls)
    return [
        Figure("longest gap of as long a time without a load, minus the median", 1000 * my_unrest, "ms",
               baseline=1000 * their_unrest, num_samples=len(my_stalls)),
        Figure("stall of another stream while an adapter loads", 1000 * median, "ms", f"<= {1000 * MAX_STALL_S:g} ms",
               median <= MAX_STALL_S, baseline=1000 * theirs, interval=bootstrap([1000 * s for s in my_stalls]),
               num_samples=len(my_stalls)),
        Figure("the same, ours / A", median / theirs, "x", f"<= {MAX_SHARE} x", median <= MAX_SHARE * theirs,
               num_samples=len(their_stalls)),
    ]  # fmt: skip


async def _seen_once(mine: Arm, fresh: Sequence[Adapter]) -> None:
    if isinstance(mine.server, Ours):
        async with mine.turn():
            for adapter in fresh:
                await mine.server.pin(f"{adapter.name}@1")
                await mine.server.pin(f"{adapter.name}@1", False)


async def _stalls(arm: Arm, fresh: Sequence[Adapter]) -> tuple[list[float], float]:
    """For each load: the longest gap from its begin to a moment after its end, minus the stream's median gap; and the median
    of the same for moments without a load."""
    async with arm.turn() as traffic:
        stream = asyncio.create_task(traffic.gaps_s(DEFAULT_MODEL, STREAM_TOKENS))
        await asyncio.sleep(QUIET_S)
        quiet = [await _moment() for _ in fresh]
        loads = [await _timed(arm, adapter) for adapter in fresh]
        times, gaps = await stream
    ends = list(zip(times[1:], gaps, strict=True))
    median = statistics.median(gaps)
    return _longest(loads, ends, median), statistics.median(_longest(quiet, ends, median))


def _longest(moments: Sequence[tuple[float, float]], ends: Sequence[tuple[float, float]], median: float) -> list[float]:
    inside = [[gap for end, gap in ends if begin <= end <= finish + AFTER_S] for begin, finish in moments]
    return [max(some) - median for some in inside if some]


async def _moment() -> tuple[float, float]:
    begin = time.perf_counter()
    await asyncio.sleep(AFTER_S)
    return begin, begin


async def _timed(arm: Arm, adapter: Adapter) -> tuple[float, float]:
    begin = time.perf_counter()
    await arm.load(adapter)
    finish = time.perf_counter()
    await asyncio.sleep(AFTER_S)
    return begin, finish
