"""Swapping versions: how fast, and what it costs everybody else.

    python -m benchmarks.swap [--quick] [--json FILE]

Needs the default model and two idle cores; about 4 minutes with `--quick`, 25 minutes without.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from . import swap_cycles, swap_latency, swap_many, swap_streams
from .figures import Figure, Report
from .markers import MarkerFactory
from .servers import SLOTS, StockFlags, model_path, ours, stock


@dataclass(frozen=True)
class Effort:
    """How long to measure. Durations in seconds of traffic."""

    num_pushes: int
    push_s: float
    zipf_s: float
    num_registered: int
    num_cycles: int


QUICK = Effort(num_pushes=6, push_s=16, zipf_s=6, num_registered=200, num_cycles=40)
FULL = Effort(num_pushes=21, push_s=60, zipf_s=30, num_registered=1000, num_cycles=2000)
console = Console(stderr=True, width=None if sys.stderr.isatty() else 150)


async def measure(folder: Path, effort: Effort) -> list[Figure]:
    """Every figure, one server at a time."""
    console.print("making marker adapters")
    factory = MarkerFactory(model_path(), num_tokens=swap_streams.MAX_TOKENS)
    large = factory.make(folder / "large", 10 * SLOTS, rank=16, filler=True)
    small = factory.make(folder / "small", effort.num_registered)
    del factory
    figures: list[Figure] = []
    async with ours() as server:
        console.print("latency of a push")
        figures += await swap_latency.measure(server, large[: effort.num_pushes])
        console.print("streams under pushes, ours")
        mine = await swap_streams.on_ours(server, large, effort.push_s)
        few_ms = await swap_many.decode_gap_ms(server, [swap_streams.NAME, swap_latency.NAME], effort.zipf_s)
        console.print("publish and retire cycles")
        figures += await swap_cycles.measure(server, small[:64], effort.num_cycles)
    async with stock(StockFlags(tuned=True)) as baseline:
        console.print("streams under pushes, stock vllm serve")
        theirs = await swap_streams.on_stock(baseline, large, effort.push_s)
    figures += swap_streams.figures(mine, theirs)
    async with ours() as server:
        console.print("more adapters than slots")
        named = await swap_many.publish_line(server, large, "z")
        figures += await swap_many.zipf(server, named, effort.zipf_s)
    return figures + await many_registered(folder, effort, few_ms)


async def many_registered(folder: Path, effort: Effort, few_ms: float) -> list[Figure]:
    console.print(f"{effort.num_registered} registered adapters")
    factory = MarkerFactory(model_path())
    home = swap_many.home_of(folder)
    swap_many.register(home, factory.make(folder / "many", effort.num_registered))
    del factory
    async with ours(home.root) as server:
        many_ms = await swap_many.decode_gap_ms(server, ["many0000", "many0001"], effort.zipf_s)
        page = await swap_many.first_page(server, effort.num_registered)
    cost = swap_many.step_cost(few_ms, many_ms, effort.num_registered)
    return [swap_many.resolve(home, effort.num_registered), page, cost]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.swap", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a few minutes, wide intervals")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there; - is standard output")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tunedock-swap-") as folder:
        report = Report("Swapping versions")
        report.add(*asyncio.run(measure(Path(folder), QUICK if options.quick else FULL)))
    report.show(console)
    if options.json is not None:
        (sys.stdout.write if str(options.json) == "-" else options.json.write_text)(report.as_json() + "\n")
    return 0 if report.goals_met else 1


if __name__ == "__main__":
    sys.exit(main())
