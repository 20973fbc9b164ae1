"""What a gateway costs: the engine alone, our REST, our gRPC, and stock `vllm serve`, under the same load.

    python -m benchmarks.gateway [--quick] [--json FILE]

Closed loop: 32 callers (and, beside them, 8), each asks again as soon as its answer is whole. The engine alone, REST and both
ways of gRPC are asked in turn, round after round, on one running engine, so that their ratios do not depend on how fast the machine is just
then; the engine alone is asked from inside the server process. The callers of the gateways share the cores with the engine.

CPU per token is that of the server without its engine process. What a gateway adds is that less what the same process
needs with the engine alone (vLLM's own client of the engine, detokenizing). Needs the default model and two idle cores; 6 minutes,
one with `--quick`: one round of 32 callers without stock.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
from rich.console import Console
from tunedock_server.run import run_loop

from examples.serving import free_port

from .figures import Figure, Report, bootstrap, percentile
from .gateway_callers import Ask, CallEach, CallForAll, RestCaller
from .gateway_load import Round, run_load
from .servers import ENVIRONMENT, StockFlags, stock

LOADS = {32: 2, 8: 4}
"""Callers at once -> answers that each gets in a round. 32 as in the other serving benchmarks, 8 for a small machine."""
ENGINE, REST, CALLS, MANY, STOCK = "engine alone", "REST", "gRPC, a call an answer", "gRPC, StreamMany", "stock REST"
GOALS = {REST: 0.95, CALLS: None, MANY: 0.97}
CPU_GOAL = 0.5
console = Console(stderr=True)

Run = Callable[[int, int], Awaitable[Round]]
"""Runs one load: so many callers, so many answers to each."""
Found = dict[str, list[Round]]


@asynccontextmanager
async def hosted() -> AsyncIterator[tuple[asyncio.subprocess.Process, int, int]]:
    """Our server in a process that also takes loads on its engine: the process, REST's port, gRPC's."""
    port, grpc_port = free_port(), free_port()
    with tempfile.TemporaryDirectory(prefix="gateway-bench-", ignore_cleanup_errors=True) as home:
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "benchmarks.gateway_host", home, str(port), str(grpc_port),
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, limit=1 << 26, env={**os.environ, **ENVIRONMENT},
        )  # fmt: skip
        try:
            await _told(child)
            yield child, port, grpc_port
        finally:
            if child.stdin is not None:
                child.stdin.close()
            await child.wait()


async def _told(child: asyncio.subprocess.Process) -> Any:
    """The next line of the child that is JSON; libraries print lines of their own."""
    assert child.stdout is not None
    while line := await child.stdout.readline():
        if line.startswith(b"{"):
            return json.loads(line)
    raise RuntimeError(f"the server ended with status {await child.wait()}")


def inside(child: asyncio.subprocess.Process) -> Run:
    async def run(num_callers: int, answers: int) -> Round:
        assert child.stdin is not None
        child.stdin.write(f"{num_callers} {answers}\n".encode())
        return Round(**await _told(child))

    return run


def outside(asks: Sequence[Ask], pid: int) -> Run:
    """The first of `asks` are the callers."""
    return lambda num_callers, answers: run_load(asks[:num_callers], answers, pid)


def over_rest(base_url: str, pid: int) -> Run:
    return outside([RestCaller(base_url).ask for _ in range(max(LOADS))], pid)


async def measure(rounds: int, loads: Sequence[int], with_stock: bool) -> dict[int, Found]:
    """Every gateway's rounds under each load. Raises RuntimeError when answers differ."""
    async with AsyncExitStack() as stack:
        child, port, grpc_port = await stack.enter_async_context(hosted())
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(f"127.0.0.1:{grpc_port}"))
        many = CallForAll(channel)
        stack.push_async_callback(many.close)
        arms = {
            ENGINE: inside(child),
            REST: over_rest(f"http://127.0.0.1:{port}/v1", child.pid),
            CALLS: outside([CallEach(channel).ask] * max(LOADS), child.pid),
            MANY: outside([many.ask] * max(LOADS), child.pid),
        }
        found = {load: await _in_turn(arms, load, rounds) for load in loads}
    if with_stock:
        await _add_stock(found)
    for one in found.values():
        same_answers(one)
    return found


async def _add_stock(found: dict[int, Found]) -> None:
    async with stock(StockFlags(tuned=True)) as baseline:
        arms = {STOCK: over_rest(baseline.client.base_url, baseline.process.pid)}
        for load in found:
            found[load] |= await _in_turn(arms, load, 2)


async def _in_turn(arms: dict[str, Run], load: int, rounds: int) -> Found:
    """Forwards and backwards in turn, after one short round that is not counted."""
    found: Found = {name: [] for name in arms}
    for run in arms.values():
        await run(load, 1)
    for number in range(rounds):
        for name in list(arms)[:: -1 if number % 2 else 1]:
            found[name].append(one := await arms[name](load, LOADS[load]))
            costs = f"{one.front_us_per_token:.0f} us of CPU per token, callers {one.caller_us_per_token:.0f}"
            console.print(f"{load} callers, {name}: {one.tokens_per_s:.0f} tok/s, {costs}")
    return found


def _usual_text(rounds: Sequence[Round]) -> str:
    """Greedy and one prompt: every answer is the same, but where a batch of another shape rounds otherwise (bf16)."""
    return statistics.mode(text for one in rounds for text in one.texts)


def same_answers(found: Found) -> None:
    """Raises RuntimeError when one gateway usually answers something else than the others."""
    texts = {name: _usual_text(rounds) for name, rounds in found.items()}
    if len(set(texts.values())) != 1:
        raise RuntimeError(f"the gateways answer differently: {texts}")


def _alike(name: str, found: Found) -> Figure:
    texts, usual = [text for one in found[name] for text in one.texts], _usual_text(found[ENGINE])
    share = sum(text == usual for text in texts) / len(texts)
    return Figure(f"{name}: answers with the engine's own text", share, "x", num_samples=len(texts))


def figures(found: Found, load: int) -> list[Figure]:
    """Medians over the rounds; ratios and added costs are taken within a round."""
    rows = [row for name in found for row in _of_one(name, found)]
    added = {name: _added(found, name) for name in (REST, CALLS, MANY)}
    rows += [*added.values(), *(_alike(name, found) for name in found)]
    rows += [_at_least(f"{name} / {ENGINE}", _ratios(found, name), goal) for name, goal in GOALS.items()]
    for name in (CALLS, MANY):
        cpu = added[name].value / added[REST].value
        goal = (f"<= {CPU_GOAL}", cpu <= CPU_GOAL) if name == MANY else ("", None)
        rows.append(Figure(f"{name} / {REST}: added CPU", cpu, "x", *goal))
    return [replace(row, name=f"{load} callers, {row.name}") for row in rows]


def _of_one(name: str, found: Found) -> list[Figure]:
    rounds = found[name]
    base: Any = _raw(found[STOCK]) if name in (REST, CALLS, MANY) and STOCK in found else (None,) * 5
    units = (
        ("throughput", "tok/s"),
        ("TTFT median", "ms"),
        ("ITL p99", "ms"),
        ("CPU per token", "us"),
        ("callers' CPU", "us"),
    )
    num = sum(len(one.texts) for one in rounds)
    return [
        Figure(f"{name}: {what}", value, unit, baseline=stock_value, num_samples=num)
        for (what, unit), value, stock_value in zip(units, _raw(rounds), base, strict=True)
    ]


def _raw(rounds: Sequence[Round]) -> tuple[float, ...]:
    """tok/s, ms to the first token, ms between tokens (p99), CPU us per token of the server and of its callers."""
    return (
        statistics.median(one.tokens_per_s for one in rounds),
        1000 * statistics.median(first for one in rounds for first in one.first_s),
        1000 * percentile([gap for one in rounds for gap in one.gaps_s], 0.99),
        statistics.median(one.front_us_per_token for one in rounds),
        statistics.median(one.caller_us_per_token for one in rounds),
    )


def _ratios(found: Found, name: str) -> list[float]:
    pairs = zip(found[name], found[ENGINE], strict=True)
    return [one.tokens_per_s / alone.tokens_per_s for one, alone in pairs]


def _added(found: Found, name: str) -> Figure:
    """CPU that the gateway adds to what the engine alone needs in the same process."""
    pairs = zip(found[name], found[ENGINE], strict=True)
    costs = [one.front_us_per_token - alone.front_us_per_token for one, alone in pairs]
    return Figure(f"{name}: CPU added per token", statistics.median(costs), "us", interval=bootstrap(costs))


def _at_least(name: str, ratios: Sequence[float], goal: float | None) -> Figure:
    median, interval = statistics.median(ratios), bootstrap(ratios)
    wanted, met = ("", None) if goal is None else (f">= {goal}", median >= goal)
    return Figure(name, median, "x", wanted, met, interval=interval, num_samples=len(ratios))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gateway", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one round instead of 5, without stock")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    options = parser.parse_args(arguments)
    report = Report("What a gateway costs")
    found: dict[int, Found] = {}

    async def run() -> None:
        found.update(await (measure(1, [32], False) if options.quick else measure(5, list(LOADS), True)))

    run_loop(run())
    for load, rounds in found.items():
        report.add(*figures(rounds, load))
    return report.finish(Console(width=140), options.json)


if __name__ == "__main__":
    sys.exit(main())
