"""Adapters at the speed of the base model: our server beside stock `vllm serve`, on the same requests in turns.

    python -m benchmarks.serve_lora [--quick] [--json FILE]

Arms: `ours`; A stock with defaults, B stock tuned by its own flags, D transformers + PEFT, E stock without LoRA. All servers
are started once; those not being measured are stopped by signal, so that rounds can go round and round. Needs the default
model, two idle cores and 16 GB; about 5 minutes with `--quick`, 25 minutes without.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
from rich.console import Console
from tunedock_registry.models import DEFAULT_MODEL

from . import lora_swap
from .figures import Figure, Report, bootstrap
from .lora_adapters import Adapter, make
from .lora_traffic import Traffic, prompt
from .servers import StockFlags, model_path, ours, stock

ADAPTERS, TOLERANCE = 3, 0.2
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
console = Console(stderr=True)
Samples = dict[tuple[str, str], list[float]]


@dataclass(frozen=True)
class Effort:
    rounds: int
    num_tokens: int
    num_loads: int


QUICK, FULL = Effort(2, 24, 4), Effort(7, 64, 10)


@dataclass
class Arm:
    """A server, frozen but for its turns."""

    name: str
    traffic: Traffic
    pid: int
    adapters: list[str]
    load: Callable[[Adapter], object]

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[Traffic]:
        os.killpg(self.pid, signal.SIGCONT)
        try:
            yield self.traffic
        finally:
            os.killpg(self.pid, signal.SIGSTOP)

    def rss_bytes(self) -> int:
        root = psutil.Process(self.pid)
        return sum(process.memory_info().rss for process in (root, *root.children(recursive=True)))


async def start(stack: AsyncExitStack, name: str, adapters: Sequence[Adapter]) -> Arm:
    """One server with the adapters loaded, stopped at the end of `stack`."""
    if name == "ours":
        server = await stack.enter_async_context(ours())
        refs = [await server.publish(adapter.name, adapter.folder) for adapter in adapters]
        arm = Arm(name, Traffic(server.client), server.process.pid, refs, lambda a: server.publish(a.name, a.folder))
    else:
        theirs = await stack.enter_async_context(stock(_flags(name)))
        if name != "E":
            for adapter in adapters:
                await theirs.load(adapter.name, adapter.folder)
        names = [adapter.name for adapter in adapters]
        arm = Arm(name, Traffic(theirs.client), theirs.process.pid, names, lambda a: theirs.load(a.name, a.folder))
    stack.callback(os.killpg, arm.pid, signal.SIGCONT)
    os.killpg(arm.pid, signal.SIGSTOP)
    return arm


def _flags(name: str) -> StockFlags:
    if name == "E":
        return StockFlags(lora=False)
    return StockFlags(tuned=name == "B", extra=("--lora-target-modules", *TARGETS) if name == "B" else ())


async def measure(arms: dict[str, Arm], effort: Effort) -> Samples:
    """`(arm, what)` -> one value a round; every other round goes backwards."""
    samples: Samples = defaultdict(list)
    for number in range(effort.rounds + 1):
        for arm in list(arms.values())[:: 1 if number % 2 == 0 else -1]:
            async with arm.turn() as traffic:
                traffic.seed = number + 1
                values = await _one_round(arm, traffic, effort.num_tokens if number else 2)
            console.print(f"round {number}: {arm.name} " + " ".join(f"{k} {v:.4g}" for k, v in values.items()))
            if number:  # round 0 warms up
                for what, value in values.items():
                    samples[arm.name, what].append(value)
    return samples


async def _one_round(arm: Arm, traffic: Traffic, num_tokens: int) -> dict[str, float]:
    values = {"decode base": await traffic.decode([DEFAULT_MODEL], num_tokens)}
    values["prefill base"] = await traffic.prefill([DEFAULT_MODEL])
    if arm.name != "E":
        values["decode 1"] = await traffic.decode(arm.adapters[:1], num_tokens)
        values["decode 3"] = await traffic.decode(arm.adapters, num_tokens)
        values["prefill 3"] = await traffic.prefill(arm.adapters)
        values["ttft 1"] = await traffic.first_token_s(arm.adapters[0])
    return values


def ratio(
    name: str, samples: Samples, mine: tuple[str, str], other: tuple[str, str], goal: float, at_least: bool = True
) -> Figure:
    """The median of the rounds' ratios, with its interval."""
    pairs = [a / b for a, b in zip(samples[mine], samples[other], strict=True)]
    median = statistics.median(pairs)
    met = median >= goal if at_least else median <= goal
    note = f"{statistics.median(samples[mine]):.4g} / {statistics.median(samples[other]):.4g}"
    sign = ">=" if at_least else "<="
    return Figure(
        name, median, "x", f"{sign} {goal:g} x", met, interval=bootstrap(pairs), num_samples=len(pairs), note=note
    )


def speed_figures(samples: Samples) -> list[Figure]:
    mine = "ours"
    return [
        ratio("decode, 3 adapters / base rows, same server", samples, (mine, "decode 3"), (mine, "decode base"), 0.90),
        ratio("prefill, 3 adapters / base, same server", samples, (mine, "prefill 3"), (mine, "prefill base"), 0.85),
        ratio("decode, 3 adapters, ours / A", samples, (mine, "decode 3"), ("A", "decode 3"), 3),
        ratio("decode, 3 adapters, ours / B", samples, (mine, "decode 3"), ("B", "decode 3"), 2),
        ratio("TTFT of 256 tokens with adapter, ours / A", samples, (mine, "ttft 1"), ("A", "ttft 1"), 0.25, at_least=False),
        ratio("decode, base rows, ours / E", samples, (mine, "decode base"), ("E", "decode base"), 1),
        ratio("prefill, base rows, ours / E", samples, (mine, "prefill base"), ("E", "prefill base"), 1),
    ]  # fmt: skip


async def same_answers(arms: dict[str, Arm]) -> Figure:
    """Log-probabilities of one text under each adapter, alone in the batch (where stock is right as well)."""
    found: dict[str, list[list[float]]] = {}
    for name in ("ours", "A"):
        async with arms[name].turn() as traffic:
            found[name] = [await traffic.logprobs(model, prompt(77, 48)) for model in arms[name].adapters]
    pairs = zip(found["ours"], found["A"], strict=True)
    worst = max(abs(a - b) for mine, theirs in pairs for a, b in zip(mine, theirs, strict=True))
    return Figure("largest log-probability difference to stock", worst, "nats", f"<= {TOLERANCE}", worst <= TOLERANCE)


def memory(arms: dict[str, Arm]) -> Figure:
    mine, theirs = arms["ours"].rss_bytes(), arms["A"].rss_bytes()
    return Figure("RSS with 3 adapters, ours / A", mine / theirs, "x", "<= 1 x", mine <= theirs,
                  note=f"{mine / 2**20:.0f} / {theirs / 2**20:.0f} MiB")  # fmt: skip


def naive_peft(adapters: Sequence[Adapter], my_speed: float, num_tokens: int, goal: float) -> Figure:
    command = [sys.executable, "-m", "benchmarks.lora_peft", "--model", str(model_path()), "--tokens", str(num_tokens)]
    command += ["--load"] if len(adapters) > ADAPTERS else []
    done = subprocess.run([*command, *(str(a.folder) for a in adapters)], check=True, stdout=subprocess.PIPE, text=True)
    theirs = json.loads(done.stdout.strip().splitlines()[-1])["tokens_per_s"]
    name = f"decode, ours (3 adapters) / transformers + PEFT ({len(adapters)} adapters)"
    return Figure(
        name, my_speed / theirs, "x", f">= {goal:g} x", my_speed / theirs >= goal, note=f"{theirs:.4g} tokens/s"
    )


async def distinct(adapters: Sequence[Adapter], effort: Effort) -> list[Figure]:
    """8, 16 and 32 adapters active at once, over one."""
    goals = {8: 0.85, 16: 0.75, 32: 0.60}
    async with ours(TUNEDOCK_MAX_LORAS="32", TUNEDOCK_MAX_CPU_LORAS="32") as server:
        refs = [await server.publish(adapter.name, adapter.folder) for adapter in adapters]
        traffic = Traffic(server.client, seed=50)
        await traffic.decode(refs, 2)
        samples: Samples = defaultdict(list)
        for _ in range(effort.rounds):
            for count in (1, *goals):
                samples["ours", str(count)].append(await traffic.decode(refs[:count], effort.num_tokens))
    return [
        ratio(f"decode, {count} distinct adapters / 1", samples, ("ours", str(count)), ("ours", "1"), goal)
        for count, goal in goals.items()
    ]


async def run(folder: Path, effort: Effort) -> list[Figure]:
    console.print("making adapters")
    adapters = await asyncio.to_thread(make, folder, model_path(), 32 + 2 * effort.num_loads)
    async with AsyncExitStack() as stack:
        arms = {name: await start(stack, name, adapters[:ADAPTERS]) for name in ("ours", "A", "B", "E")}
        samples = await measure(arms, effort)
        figures = [*speed_figures(samples), await same_answers(arms), memory(arms)]
        fresh = adapters[32 : 32 + effort.num_loads]
        figures += await lora_swap.measure(arms["ours"], arms["A"], fresh)
    my_speed = statistics.median(samples["ours", "decode 3"])
    figures += await distinct(adapters[:32], effort)
    figures.append(await asyncio.to_thread(naive_peft, adapters[:ADAPTERS], my_speed, effort.num_tokens, 10))
    figures.append(await asyncio.to_thread(naive_peft, adapters[:32], my_speed, effort.num_tokens, 30))
    return figures


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serve_lora", description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tunedock-bench-", ignore_cleanup_errors=True) as folder:
        figures = asyncio.run(run(Path(folder), QUICK if options.quick else FULL))
    report = Report("adapters at the speed of the base model", figures)
    report.show(console)
    if options.json is not None:
        options.json.write_text(report.as_json())
    return 0 if report.goals_met else 1


if __name__ == "__main__":
    sys.exit(main())
