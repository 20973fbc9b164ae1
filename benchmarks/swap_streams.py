"""16 streams while a new version is pushed every two seconds: errors, wrong answers, and what the streams feel.

The same load runs with and without pushes, in turns (quiet, push, push, quiet), on our server and on stock vLLM. Answers
have 12 to 32 tokens, so that in the quiet phase, too, prompts are computed while others stream. Stock has no aliases: its
caller moves its streams to the new adapter's name itself, after `/v1/load_lora_adapter` has returned.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from .figures import Figure, percentile
from .load import Answer, Client, Streams, gaps_ms
from .markers import QUESTIONS, Marker, messages
from .servers import Ours, Stock

NAME = "pushed"
NUM_STREAMS, EVERY_S, LEAST_TOKENS, MAX_TOKENS = 16, 2.0, 12, 32
MAX_RATIO = 1.2
Push = Callable[[Marker], Awaitable[str]]


@dataclass
class Pushed:
    """What was pushed: reference -> marker, and which one is asked for."""

    markers: Iterator[Marker]
    push: Push
    golden: dict[str, str] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    async def one(self) -> str:
        marker = next(self.markers)
        ref = await self.push(marker)
        self.golden[ref] = marker.golden
        return ref

    async def every(self, seconds: float, period_s: float) -> int:
        """Pushes at a fixed pace until `seconds` are over. Returns how many."""
        began, count = time.monotonic(), 0
        while (due := began + count * period_s) < began + seconds:
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            await self.one()
            count += 1
        return count

    def wrong(self, answers: Sequence[Answer]) -> int:
        """Answers that are not the beginning of their version's golden answer."""
        told = [answer for answer in answers if answer.error is None]
        return sum(not (answer.text and self.golden.get(answer.model, "").startswith(answer.text)) for answer in told)


@dataclass
class Run:
    """All answers of one server, split by whether versions were pushed meanwhile."""

    quiet: list[Answer] = field(default_factory=list)
    pushing: list[Answer] = field(default_factory=list)
    num_pushes: int = 0
    wrong: int = 0

    @property
    def answers(self) -> list[Answer]:
        return self.quiet + self.pushing

    @property
    def errors(self) -> list[str]:
        return [answer.error for answer in self.answers if answer.error]

    @property
    def p99_ratio(self) -> float:
        return percentile(gaps_ms(self.pushing), 0.99) / percentile(gaps_ms(self.quiet), 0.99)


def ratio_interval(result: Run, rounds: int = 400) -> tuple[float, float]:
    """95 % of `p99_ratio`, by drawing stretches as long as a push: gaps of one step come together, and so do those of one
    push."""
    rng = np.random.default_rng(0)

    def p99(stretches: list[list[float]]) -> float:
        drawn = [gap for index in rng.integers(len(stretches), size=len(stretches)) for gap in stretches[index]]
        return float(np.percentile(drawn, 99, method="inverted_cdf"))

    quiet, pushing = _stretches(result.quiet), _stretches(result.pushing)
    ratios = sorted(p99(pushing) / p99(quiet) for _ in range(rounds))
    return ratios[int(0.025 * rounds)], ratios[int(0.975 * rounds) - 1]


def _stretches(answers: Sequence[Answer]) -> list[list[float]]:
    """Gaps in ms by the stretch of `EVERY_S` in which they end."""
    found: dict[int, list[float]] = defaultdict(list)
    for answer in answers:
        for end, gap in zip(answer.times[1:], answer.gaps_s, strict=True):
            found[int(end / EVERY_S)].append(1000 * gap)
    return list(found.values())


async def run(client: Client, pushed: Pushed, model: Callable[[], str], seconds: float) -> Run:
    """Four phases of `seconds / 2` each: quiet, push, push, quiet."""
    result = Run()
    await streams(client, model, 2.0)  # warm
    for pushing in (False, True, True, False):
        if pushing:
            work = asyncio.create_task(pushed.every(seconds / 2, EVERY_S))
            result.pushing += await streams(client, model, seconds / 2)
            result.num_pushes += await work
        else:
            result.quiet += await streams(client, model, seconds / 2)
    result.wrong = pushed.wrong(result.answers)
    return result


async def streams(client: Client, model: Callable[[], str], seconds: float) -> list[Answer]:
    def pick(number: int) -> tuple[str, Sequence[dict[str, str]]]:
        return model(), messages(QUESTIONS[number % len(QUESTIONS)])

    load = Streams(client, pick, NUM_STREAMS, MAX_TOKENS, body={"ignore_eos": True}, least_tokens=LEAST_TOKENS)
    return await load.run_for(seconds)


async def on_ours(server: Ours, markers: Sequence[Marker], seconds: float) -> Run:
    previous: list[str] = []

    async def push(marker: Marker) -> str:
        """Publish, promote, and retire what is no longer a rollback target."""
        ref = await server.publish(NAME, marker.folder)
        pushed.golden[ref] = marker.golden
        await server.promote(ref)
        previous.append(ref)
        if len(previous) > 2:
            await server.retire(previous.pop(0))
        return ref

    pushed = Pushed(itertools.cycle(markers), push)
    await pushed.one()
    return await run(server.client, pushed, lambda: NAME, seconds)


async def on_stock(server: Stock, markers: Sequence[Marker], seconds: float) -> Run:
    count = itertools.count(1)
    live = [""]

    async def push(marker: Marker) -> str:
        ref = f"{NAME}-{next(count)}"
        await server.load(ref, marker.folder)
        pushed.golden[ref] = marker.golden
        live[0] = ref
        return ref

    pushed = Pushed(itertools.cycle(markers), push)
    await pushed.one()
    return await run(server.client, pushed, lambda: live[0], seconds)


def figures(mine: Run, stock: Run | None) -> list[Figure]:
    pushes = f"{mine.num_pushes} pushes" + (f", stock {stock.num_pushes}" if stock else "")
    return [
        Figure(
            "errors while pushing", len(mine.errors), "", "= 0", not mine.errors, len(stock.errors) if stock else None,
            num_samples=len(mine.answers), note="; ".join(mine.errors[:3]),
        ),
        Figure(
            "answers from a wrong version", mine.wrong, "", "= 0", mine.wrong == 0, stock.wrong if stock else None,
            num_samples=len(mine.answers),
        ),
        Figure(
            "p99 inter-token latency, pushing / quiet", mine.p99_ratio, "x", f"<= {MAX_RATIO} x",
            mine.p99_ratio <= MAX_RATIO, stock.p99_ratio if stock else None, ratio_interval(mine), note=pushes,
        ),
        *(_latency(name, share, mine, stock) for name, share in (("p50", 0.5), ("p99", 0.99), ("longest", 1.0))),
    ]  # fmt: skip


def _latency(name: str, share: float, mine: Run, stock: Run | None) -> Figure:
    value, baseline = (percentile(gaps_ms(run.pushing), share) if run else None for run in (mine, stock))
    return Figure(f"{name} inter-token latency while pushing", value or 0.0, "ms", baseline=baseline)
