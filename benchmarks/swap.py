"""Swapping versions: how fast, and what it costs everybody else.

    python -m benchmarks.swap [--quick] [--only PART] [--json FILE]

Needs the default model and two idle cores; 25 minutes, most of it the 2,000 cycles. With `--quick` a
minute and a half: latency and streams, without stock, unless `--only` asks for more.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from tunedock_registry.layout import Home

from . import swap_cycles, swap_latency, swap_many, swap_streams
from .figures import Figure, Report
from .markers import Marker, MarkerFactory
from .servers import SLOTS, StockFlags, model_path, ours, stock


@dataclass(frozen=True)
class Effort:
    """How long to measure. Durations in seconds of traffic. `num_large`: markers that are pushed, each once. `parts`: what is
    measured unless asked for otherwise; none: all."""

    num_pushes: int
    push_s: float
    zipf_s: float
    num_registered: int
    num_cycles: int
    num_large: int
    parts: tuple[str, ...]
    with_stock: bool


QUICK = Effort(4, 8, 6, 64, 40, num_large=2 * SLOTS, parts=("latency", "streams"), with_stock=False)
FULL = Effort(21, 60, 30, 1000, 2000, num_large=10 * SLOTS, parts=(), with_stock=True)
console = Console(stderr=True, width=None if sys.stderr.isatty() else 150)


@dataclass(frozen=True)
class Bench:
    """What the parts share. `large`: rank-16 markers of full size; `small`: many tiny ones."""

    effort: Effort
    folder: Path
    large: list[Marker]
    small: list[Marker]

    @classmethod
    def prepare(cls, folder: Path, effort: Effort, parts: Sequence[str]) -> Bench:
        num_large = max(effort.num_large, 10 * SLOTS if "crowd" in parts else 0)
        factory = MarkerFactory(model_path(), num_tokens=swap_streams.MAX_TOKENS)
        large = factory.make(folder / "large", num_large, rank=16, filler=True)
        return cls(effort, folder, large, factory.make(folder / "small", effort.num_registered))


async def latency(bench: Bench) -> list[Figure]:
    async with ours() as server:
        return await swap_latency.measure(server, bench.large[: bench.effort.num_pushes])


async def streams(bench: Bench) -> list[Figure]:
    async with ours() as server:
        mine = await swap_streams.on_ours(server, bench.large, bench.effort.push_s)
    if not bench.effort.with_stock:
        return swap_streams.figures(mine, None)
    async with stock(StockFlags(tuned=True)) as baseline:
        theirs = await swap_streams.on_stock(baseline, bench.large, bench.effort.push_s)
    return swap_streams.figures(mine, theirs)


async def crowd(bench: Bench) -> list[Figure]:
    """More adapters than slots."""
    async with ours() as server:
        named = await swap_many.publish_line(server, bench.large, "z")
        return await swap_many.zipf(server, named, bench.effort.zipf_s)


async def registered(bench: Bench) -> list[Figure]:
    """Many registered adapters, and three on a server beside it, which is asked in turn."""
    effort, folder, num = bench.effort, bench.folder, bench.effort.num_registered
    few_home, home = Home(folder / "few"), Home(folder / "home")
    swap_many.register(few_home, bench.small[:3])
    swap_many.register(home, bench.small)
    async with ours(few_home.root) as few, ours(home.root) as many:
        cost = await swap_many.step_cost(few, many, num, effort.zipf_s)
        return [swap_many.resolve(home, num), await swap_many.first_page(many, num), cost]


async def cycles(bench: Bench) -> list[Figure]:
    async with ours() as server:
        return await swap_cycles.measure(server, bench.small[:64], bench.effort.num_cycles)


PARTS: dict[str, Callable[[Bench], Awaitable[list[Figure]]]] = {
    part.__name__: part for part in (latency, streams, crowd, registered, cycles)
}


def run(names: list[str], effort: Effort, report: Report, path: Path | None) -> None:
    """One server at a time. What was measured is written after every part, so that a late failure costs only its own."""
    with tempfile.TemporaryDirectory(prefix="tunedock-swap-", ignore_cleanup_errors=True) as folder:
        console.print("making marker adapters")
        bench = Bench.prepare(Path(folder), effort, names)
        for name in names:
            console.print(f"measuring {name}")
            report.add(*asyncio.run(measure(PARTS[name], bench)))
            if path is not None and str(path) != "-":
                path.write_text(report.as_json() + "\n")


async def measure(part: Callable[[Bench], Awaitable[list[Figure]]], bench: Bench) -> list[Figure]:
    return await part(bench)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.swap", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a minute, wide intervals")
    parser.add_argument("--only", choices=PARTS, action="append", help="may repeat; default: all")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there; - is standard output")
    options = parser.parse_args()
    report = Report("Swapping versions")
    try:
        effort = QUICK if options.quick else FULL
        run(options.only or list(effort.parts or PARTS), effort, report, options.json)
    finally:
        report.show(console)
    if str(options.json) == "-":
        print(report.as_json())
    return 0 if report.goals_met else 1


if __name__ == "__main__":
    sys.exit(main())
