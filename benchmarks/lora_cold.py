"""What an adapter costs that the engine has not got: time to first token cold, minus hot.

Both servers have had it once and let go of it: ours after a pin, stock because it was loaded and pushed out again by as many
others as have a place in its memory. Files are in the page cache on both sides. What ours pays for the sha256 of a version that
it meets for the first time (the publish gate does, as a rule) is a line of its own.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from .figures import Figure, bootstrap
from .lora_arms import Arm
from .servers import Ours

PROMPT_TOKENS, HOT_TIMES = 16, 3
MAX_SHARE = 0.1


async def measure(mine: Arm, stock: Arm, my_names: Sequence[str], their_names: Sequence[str]) -> list[Figure]:
    new_costs = await _costs(mine, my_names)
    await _let_go(mine, my_names)
    my_costs, their_costs = await _costs(mine, my_names), await _costs(stock, their_names)
    median, theirs = statistics.median(my_costs), statistics.median(their_costs)
    return [
        Figure("TTFT of an adapter that the server never had, cold minus hot", 1000 * statistics.median(new_costs), "ms",
               interval=bootstrap([1000 * cost for cost in new_costs]), num_samples=len(new_costs)),
        Figure("TTFT of an unseen adapter, cold minus hot", 1000 * median, "ms", baseline=1000 * theirs,
               interval=bootstrap([1000 * cost for cost in my_costs]), num_samples=len(my_costs)),
        Figure("the same, ours / A", median / theirs, "x", f"<= {MAX_SHARE} x", median <= MAX_SHARE * theirs,
               num_samples=len(their_costs)),
    ]  # fmt: skip


async def _let_go(arm: Arm, names: Sequence[str]) -> None:
    """Out of slot and host memory: what is unpinned while nobody uses it leaves."""
    if isinstance(arm.server, Ours):
        async with arm.turn():
            for name in names:
                await arm.server.pin(name)
                await arm.server.pin(name, False)


async def _costs(arm: Arm, names: Sequence[str]) -> list[float]:
    """Of each adapter in seconds: its first request minus the median of the ones after."""
    costs = []
    async with arm.turn() as traffic:
        await traffic.first_token_s(arm.adapters[0], PROMPT_TOKENS)
        for name in names:
            cold = await traffic.first_token_s(name, PROMPT_TOKENS)
            hot = [await traffic.first_token_s(name, PROMPT_TOKENS) for _ in range(HOT_TIMES)]
            costs.append(cold - statistics.median(hot))
    return costs
