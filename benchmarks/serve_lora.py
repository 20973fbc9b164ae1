"""Adapters at the speed of the base model: our server beside stock `vllm serve`, on the same requests in turns.

    python -m benchmarks.serve_lora [--quick] [--json FILE]

Arms: `ours`; A stock with defaults, B stock tuned by its own flags, D transformers + PEFT, E stock without LoRA (C, the
engine in process, is an arm of the `gateway` benchmark). Servers that take turns all run; those not being measured are
stopped by signal. Needs the default model, two idle cores, 20 GB of memory and 4 GB of disk; about 12 minutes, 2 with
`--quick` (several times that where stock multiplies bfloat16 slowly), which leaves out B, D, E and the rows about many adapters.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path

from rich.console import Console
from tunedock_registry.layout import Home
from tunedock_registry.models import DEFAULT_MODEL

from . import lora_cold, lora_many, lora_swap
from .figures import Figure, Report
from .lora_adapters import Adapter, make, register
from .lora_arms import Arm, Effort, Samples, freeze, ratio
from .lora_traffic import NUM_STREAMS, Traffic, prompt
from .servers import StockFlags, dtype_flags, model_path, ours, stock

ADAPTERS, PEFT_ADAPTERS, TOLERANCE = 3, 8, 0.1
PEFT_GOALS = {"grouped": 10, "mixed": None, "queued": None, "loaded": 30}  # ways of `lora_peft`
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
QUICK, FULL = Effort(1, 16, 3, 0), Effort(3, 40, 12, 1000)
console = Console(stderr=True, width=None if sys.stderr.isatty() else 150)


async def start(stack: AsyncExitStack, name: str, folder: Path, adapters: Sequence[Adapter]) -> Arm:
    """One server that knows the adapters, stopped at the end of `stack`."""
    if name == "ours":
        references = register(Home(folder / "home"), adapters)
        return freeze(stack, name, await stack.enter_async_context(ours(folder / "home")), references)
    theirs = await stack.enter_async_context(stock(_flags(name)))
    for adapter in adapters if name != "E" else ():
        await theirs.load(adapter.name, adapter.folder)
    return freeze(stack, name, theirs, [adapter.name for adapter in adapters])


def _flags(name: str) -> StockFlags:
    """B and E get the dtype that this processor is fastest with, as ours does by itself."""
    if name == "E":
        return StockFlags(lora=False, extra=dtype_flags())
    return StockFlags(
        tuned=name == "B", extra=("--lora-target-modules", *TARGETS, *dtype_flags()) if name == "B" else ()
    )


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
    """Of stock with adapters only what a figure needs: its prefill with adapters takes half a minute."""
    some = arm.adapters[:ADAPTERS]
    values: dict[str, float] = {}
    if arm.name in ("ours", "E"):
        values["decode base"] = await traffic.decode([DEFAULT_MODEL], num_tokens)
        values["prefill base"] = await traffic.prefill([DEFAULT_MODEL])
    if arm.name != "E":
        values["decode 3"] = await traffic.decode(some, num_tokens)
    if arm.name in ("ours", "A"):
        values["ttft 1"] = await traffic.first_token_s(some[0])
    if arm.name == "ours":
        values["prefill 3"] = await traffic.prefill(some)
        values["whole 3"] = await traffic.whole(some, num_tokens, NUM_STREAMS)
        # There and back, so that a drift within the turn cancels out.
        again = await traffic.decode(some, num_tokens), await traffic.decode([DEFAULT_MODEL], num_tokens)
        values["decode 3"] = (values["decode 3"] + again[0]) / 2
        values["decode base"] = (values["decode base"] + again[1]) / 2
    return values


def speed_figures(samples: Samples) -> list[Figure]:
    """Of the arms that took part."""
    rows = [
        ("decode, 3 adapters / base rows, same server", "decode 3", ("ours", "decode base"), 0.90, True),
        ("prefill, 3 adapters / base, same server", "prefill 3", ("ours", "prefill base"), 0.85, True),
        ("decode, 3 adapters, ours / A", "decode 3", ("A", "decode 3"), 3, True),
        ("decode, 3 adapters, ours / B", "decode 3", ("B", "decode 3"), 2, True),
        ("TTFT of 256 tokens with adapter, ours / A", "ttft 1", ("A", "ttft 1"), 0.25, False),
        ("decode, base rows, ours / E", "decode base", ("E", "decode base"), 1, True),
        ("prefill, base rows, ours / E", "prefill base", ("E", "prefill base"), 1, True),
    ]
    return [
        ratio(name, samples, ("ours", what), other, goal, at_least)
        for name, what, other, goal, at_least in rows
        if samples[other]
    ]


async def same_answers(arms: dict[str, Arm]) -> Figure:
    """Log-probabilities of one text under each adapter, alone in the batch (where stock is right as well).

    Two servers round bfloat16 logits differently, base rows too: these say how much of a difference means nothing.
    """
    found: dict[str, list[list[float]]] = {}
    for name in ("ours", "A"):
        async with arms[name].turn() as traffic:
            models = [DEFAULT_MODEL, *arms[name].adapters[:ADAPTERS]]
            found[name] = [await traffic.logprobs(model, prompt(77, 48)) for model in models]
    base, *adapters = map(_difference, found["ours"], found["A"])
    name, worst = "log-probabilities, mean difference to stock, worst of the adapters", max(adapters)
    goal, note = f"<= {TOLERANCE:g}", f"base rows: {base:.3f}"
    return Figure(name, worst, "nats", goal, worst <= TOLERANCE, note=note)


def _difference(mine: Sequence[float], theirs: Sequence[float]) -> float:
    return statistics.mean(abs(a - b) for a, b in zip(mine, theirs, strict=True))


def memory(arms: dict[str, Arm]) -> Figure:
    mine, theirs = arms["ours"].rss_bytes(), arms["A"].rss_bytes()
    return Figure("RSS with 3 adapters, ours / A", mine / theirs, "x", "<= 1 x", mine <= theirs,
                  note=f"{mine / 2**20:.0f} / {theirs / 2**20:.0f} MiB")  # fmt: skip


def start_up(arms: dict[str, Arm]) -> Figure:
    mine, theirs = arms["ours"].server.start_s, arms["A"].server.start_s
    return Figure("from the command to ready, ours / A", mine / theirs, "x", note=f"{mine:.0f} / {theirs:.0f} s")


def naive_peft(adapters: Sequence[Adapter], way: str, my_speed: float, num_tokens: int) -> Figure:
    """Against transformers + PEFT, prompts included on both sides. 100 adapters are in use, its speed is taken on some."""
    command = [sys.executable, "-m", "benchmarks.lora_peft", "--model", str(model_path()), "--tokens", str(num_tokens)]
    command += ["--way", way, *(str(a.folder) for a in adapters)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    theirs = json.loads(done.stdout.strip().splitlines()[-1])["tokens_per_s"]
    num = lora_many.NUM_ACTIVE if way == "loaded" else ADAPTERS
    name, ratio = f"tokens/s, ours / transformers + PEFT, {num} adapters, {way}", my_speed / theirs
    goal = PEFT_GOALS[way]
    wanted, met = ("", None) if goal is None else (f">= {goal:g} x", ratio >= goal)
    return Figure(name, ratio, "x", wanted, met, note=f"{my_speed:.4g} / {theirs:.4g}")


def all_naive_peft(adapters: Sequence[Adapter], speed: float, crowded_speed: float, num_tokens: int) -> list[Figure]:
    """`crowded_speed`: ours over 100 adapters."""
    return told(
        [
            naive_peft(adapters[:PEFT_ADAPTERS], way, crowded_speed, num_tokens)
            if way == "loaded"
            else naive_peft(adapters[:ADAPTERS], way, speed, num_tokens)
            for way in PEFT_GOALS
        ]
    )


async def take_turns(
    folder: Path, adapters: Sequence[Adapter], names: Sequence[str], effort: Effort
) -> tuple[list[Figure], float]:
    """Every row that needs stock servers, and our tokens a second over 3 adapters, prompts included."""
    seen = ADAPTERS + effort.num_loads
    fresh = adapters[seen : seen + effort.num_loads]
    async with AsyncExitStack() as stack:
        arms = {}
        for name in names:
            console.print(f"starting {name}")
            arms[name] = await start(stack, name, folder, adapters[: _known(name, effort)])
        samples = await measure(arms, effort)
        figures = told([*speed_figures(samples), memory(arms), start_up(arms)])
        figures += told([await same_answers(arms)])
        mine, theirs = arms["ours"], arms["A"]
        unseen = slice(ADAPTERS, seen)
        figures += told(await lora_cold.measure(mine, theirs, mine.adapters[unseen], theirs.adapters[unseen]))
        figures += told(await lora_swap.measure(mine, theirs, fresh))
    return figures, statistics.median(samples["ours", "whole 3"])


def _known(name: str, effort: Effort) -> int:
    """Stock is told of an adapter when it is loaded; ours knows from the start what it will load later."""
    return ADAPTERS + {"ours": 2, "A": 1}.get(name, 0) * effort.num_loads


async def run(folder: Path, quick: bool) -> list[Figure]:
    effort = QUICK if quick else FULL
    console.print("making adapters")
    num_adapters = ADAPTERS + 2 * effort.num_loads if quick else lora_many.NUM_LARGE
    adapters = await asyncio.to_thread(make, folder, model_path(), num_adapters)
    figures, my_speed = await take_turns(folder, adapters, ("ours", "A") if quick else ("ours", "A", "B", "E"), effort)
    if quick:
        return figures
    more, crowded_speed = await lora_many.measure(folder, adapters, effort)
    figures += told(more)
    figures += await asyncio.to_thread(all_naive_peft, adapters, my_speed, crowded_speed, effort.num_tokens)
    return figures


def told(figures: list[Figure]) -> list[Figure]:
    """Says them as they come: a run takes long, and what it found so far must survive a failure."""
    for figure in figures:
        console.print(f"{figure.name}: {figure.value:.4g} {figure.unit} ({figure.goal}) {figure.note}")
    return figures


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serve_lora", description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tunedock-bench-", ignore_cleanup_errors=True) as folder:
        figures = asyncio.run(run(Path(folder), options.quick))
    report = Report("adapters at the speed of the base model", figures)
    return report.finish(console, options.json)


if __name__ == "__main__":
    sys.exit(main())
