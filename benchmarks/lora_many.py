"""Many adapters: up to 32 active in one batch, and a thousand registered of which few are in use.

Two servers of ours, frozen in turns: `wide` has 32 adapters registered and as many slots, `crowd` a thousand more. Those
have rank 1 (0.6 MB instead of 9.8), so that a thousand fit on a disk; reading one takes nearly as many operations.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path

from tunedock_registry.layout import Home

from .figures import Figure
from .lora_adapters import Adapter, make, register
from .lora_arms import Arm, Effort, Samples, freeze, ratio
from .lora_traffic import Traffic
from .servers import model_path, ours

SLOTS, NUM_ACTIVE = 32, 100
GOALS = {8: 0.85, 16: 0.75, 32: 0.60}
MIN_RETENTION, MAX_BYTES_EACH = 0.95, 2048


async def measure(folder: Path, adapters: Sequence[Adapter], effort: Effort) -> tuple[list[Figure], float]:
    """The figures, and tokens a second of 100 requests for as many adapters, prompts included."""
    tiny = make(folder / "tiny", model_path(), effort.num_registered, rank=1, prefix="tiny")
    async with AsyncExitStack() as stack:
        wide = await _start(stack, folder / "wide", [*adapters, *tiny[:3]])
        crowd = await _start(stack, folder / "crowd", [*adapters, *tiny])
        more_bytes = crowd.api_bytes() - wide.api_bytes()
        samples = await _rounds(wide, crowd, len(adapters), effort)
        async with crowd.turn() as traffic:
            speed = await traffic.whole(crowd.adapters[-NUM_ACTIVE:], effort.num_tokens, NUM_ACTIVE)
    return [*_figures(samples, len(tiny)), _memory(more_bytes, len(tiny) - 3)], speed


async def _start(stack: AsyncExitStack, home: Path, adapters: Sequence[Adapter]) -> Arm:
    references = register(Home(home), adapters)
    server = await stack.enter_async_context(
        ours(home, TUNEDOCK_MAX_LORAS=str(SLOTS), TUNEDOCK_MAX_CPU_LORAS=str(2 * SLOTS))
    )
    return freeze(stack, home.name, server, references)


async def _rounds(wide: Arm, crowd: Arm, num_large: int, effort: Effort) -> Samples:
    samples: Samples = defaultdict(list)
    for number in range(effort.rounds + 1):
        tokens = effort.num_tokens if number else 2
        found: list[tuple[tuple[str, str], float]] = []
        async with wide.turn() as traffic:
            traffic.seed = 50 + number
            for count in (1, 3, *GOALS):
                speed = await traffic.decode(wide.adapters[:count], tokens)
                found.append((("wide", str(count)), speed))
            found.append((("wide", "zipf"), await _zipf(traffic, wide.adapters[num_large:], number, tokens)))
        async with crowd.turn() as traffic:
            traffic.seed = 50 + number
            found.append((("crowd", "3"), await traffic.decode(crowd.adapters[:3], tokens)))
            found.append((("crowd", "zipf"), await _zipf(traffic, crowd.adapters[num_large:], number, tokens)))
        for what, value in found if number else ():  # round 0 warms up
            samples[what].append(value)
    return samples


async def _zipf(traffic: Traffic, names: Sequence[str], seed: int, num_tokens: int) -> float:
    """Tokens a second, prompts and loads included. The adapter at rank k comes with weight 1 / k."""
    chosen = random.Random(seed).choices(names, [1 / rank for rank in range(1, len(names) + 1)], k=2 * SLOTS)
    return await traffic.whole(chosen, num_tokens, len(chosen))


def _figures(samples: Samples, num: int) -> list[Figure]:
    figures = [
        ratio(f"decode, {count} distinct adapters / 1", samples, ("wide", str(count)), ("wide", "1"), goal)
        for count, goal in GOALS.items()
    ]
    figures.append(
        ratio(
            f"decode over the same 3, {num} more registered / none",
            samples,
            ("crowd", "3"),
            ("wide", "3"),
            MIN_RETENTION,
        )
    )
    figures.append(
        ratio(
            f"tokens/s, Zipf over {num} of rank 1 / over 3", samples, ("crowd", "zipf"), ("wide", "zipf"), MIN_RETENTION
        )
    )
    return figures


def _memory(more_bytes: int, num: int) -> Figure:
    """Taken when both had only started: nothing is resident. Two processes of one program differ by about a megabyte."""
    each = more_bytes / num
    return Figure(
        "API process's memory per registered adapter", each, "bytes", f"<= {MAX_BYTES_EACH}", each <= MAX_BYTES_EACH,
        num_samples=num, note=f"{more_bytes / 2**20:.2f} MiB for {num} more",
    )  # fmt: skip
