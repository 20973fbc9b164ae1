"""Many adapters: up to 32 active in one batch, and a thousand registered of which few are in use.

Two servers of ours, frozen in turns: `wide` has 32 adapters registered, `crowd` a thousand more; both as many slots as they run
requests at once, which is what they have by themselves on CPU. Those
have rank 1 (0.6 MB instead of 9.8), so that a thousand fit on a disk; reading one takes nearly as many operations.

Memory is what one running server gains when thousands more are registered: two processes of one program differ by megabytes.
"""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from rich.console import Console
from sqlalchemy import func, insert, select
from tunedock_registry.layout import Home
from tunedock_registry.registry import Registry
from tunedock_registry.tables.adapters import AdapterRow, VersionRow
from tunedock_registry.tables.base import bump

from .figures import Figure
from .lora_adapters import Adapter, make, register
from .lora_arms import Arm, Effort, Samples, freeze, ratio
from .lora_traffic import Traffic
from .servers import model_path, ours

NUM_LARGE, SLOTS, NUM_ACTIVE = 32, 64, 100
GOALS = {8: 0.85, 16: 0.75, 32: 0.60}
MIN_RETENTION, MAX_BYTES_EACH = 0.95, 2048
NUM_MORE, SETTLE_S, KNOWN_WITHIN_S = 4000, 3.0, 120.0
console = Console(stderr=True)


async def measure(folder: Path, adapters: Sequence[Adapter], effort: Effort) -> tuple[list[Figure], float]:
    """The figures, and tokens a second of 100 requests for as many adapters, prompts included."""
    tiny = make(folder / "tiny", model_path(), effort.num_registered, rank=1, prefix="tiny")
    async with AsyncExitStack() as stack:
        wide = await _start(stack, folder / "wide", [*adapters, *tiny[:3]])
        crowd = await _start(stack, folder / "crowd", [*adapters, *tiny])
        samples = await _rounds(wide, crowd, len(adapters), effort)
        async with crowd.turn() as traffic:
            speed = await traffic.whole(crowd.adapters[-NUM_ACTIVE:], effort.num_tokens, NUM_ACTIVE)
            memory = await _memory(crowd, Home(folder / "crowd"))
    return [*_figures(samples, len(tiny)), memory], speed


async def _start(stack: AsyncExitStack, home: Path, adapters: Sequence[Adapter]) -> Arm:
    references = register(Home(home), adapters)
    server = await stack.enter_async_context(
        ours(home, TUNEDOCK_MAX_LORAS=str(SLOTS), TUNEDOCK_MAX_CPU_LORAS=str(SLOTS))
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
    chosen = random.Random(seed).choices(names, [1 / rank for rank in range(1, len(names) + 1)], k=SLOTS)
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


async def _memory(arm: Arm, home: Home) -> Figure:
    """Each with an adapter of its own, as far as the server knows: nobody asks for their files."""
    known, before = await _num_known(arm), await _settled(arm)
    await asyncio.to_thread(_register_rows, home, NUM_MORE)
    async with asyncio.timeout(KNOWN_WITHIN_S):
        while (now := await _num_known(arm)) < known + NUM_MORE:
            console.print(f"{now} of {known + NUM_MORE} versions known")
            await _settled(arm)
    more_bytes = await _settled(arm) - before
    each = more_bytes / NUM_MORE
    return Figure(
        "API process's memory per registered adapter", each, "bytes", f"<= {MAX_BYTES_EACH}", each <= MAX_BYTES_EACH,
        num_samples=NUM_MORE, note=f"{more_bytes / 2**20:.2f} MiB for {NUM_MORE} more",
    )  # fmt: skip


def _register_rows(home: Home, num: int) -> None:
    """Copies of a registered adapter under other names and digests, in one transaction."""
    registry = Registry.open(home)
    try:
        with registry.db.write() as session:
            version = session.scalars(select(VersionRow).limit(1)).one()
            adapter = session.get_one(AdapterRow, version.adapter_seq)
            first = 1 + session.scalars(select(func.max(AdapterRow.seq))).one()
            first_version = 1 + session.scalars(select(func.max(VersionRow.seq))).one()
            names = [{**_columns(adapter), "seq": first + i, "name": f"more{i:05d}"} for i in range(num)]
            session.execute(insert(AdapterRow), names)
            session.execute(
                insert(VersionRow),
                [
                    {**_columns(version), "seq": first_version + i, "adapter_seq": first + i, "digest": f"{i:064x}"}
                    for i in range(num)
                ],
            )
            bump(session)
    finally:
        registry.close()


def _columns(row: AdapterRow | VersionRow) -> dict[str, Any]:
    return {column.name: getattr(row, column.name) for column in row.__table__.columns}


async def _num_known(arm: Arm) -> int:
    return int((await arm.server.client.call("GET", "/capacity"))["registered_versions"])


async def _settled(arm: Arm) -> int:
    await asyncio.sleep(SETTLE_S)
    return arm.api_bytes()
