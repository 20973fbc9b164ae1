"""The longest gap in somebody else's stream while an adapter is loaded, by the call of each server that does nothing else.

Neither server has it in memory before, both have it in the page cache; ours has had it once, as after every publish gate. What a
whole publish costs other streams, gate included, is in the `swap` benchmark. A load is over in fewer milliseconds than a token
takes: the gaps that count are those that it touches and the next one. As many gaps without a load say what of it is the server's
own unrest.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Sequence
from itertools import pairwise

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
        Figure("longest of as many gaps without a load, minus the median", 1000 * my_unrest, "ms",
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
    """Of each load, and the median of as many moments without a load."""
    async with arm.turn() as traffic:
        stream = asyncio.create_task(traffic.times_s(DEFAULT_MODEL, STREAM_TOKENS))
        await asyncio.sleep(QUIET_S)
        quiet = [await _moment() for _ in fresh]
        loads = [await _timed(arm, adapter) for adapter in fresh]
        times = await stream
    return stalls(loads, times), statistics.median(stalls(quiet, times))


def stalls(moments: Sequence[tuple[float, float]], times: Sequence[float]) -> list[float]:
    """For each moment (begin, end) within a stream the longest gap between two tokens that it touches, or the next one, minus
    the median of all gaps. Seconds."""
    gaps = list(pairwise(times))
    median = statistics.median(later - earlier for earlier, later in gaps)
    found = []
    for begin, end in moments:
        first = next(index for index, (_, later) in enumerate(gaps) if later >= begin)
        after = next((index for index, (earlier, _) in enumerate(gaps) if earlier > end), len(gaps) - 1)
        found.append(max(later - earlier for earlier, later in gaps[first : after + 1]) - median)
    return found


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
