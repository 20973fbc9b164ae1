"""The load of the gateway benchmark: callers that ask again as soon as their answer is whole, and what they saw."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import psutil

from .gateway_callers import MAX_TOKENS, Answer, Ask


@dataclass(frozen=True)
class Round:
    """One load. Times in seconds; `front_cpu_s` is of the server without the engine, `caller_cpu_s` of who asked."""

    num_tokens: int
    wall_s: float
    front_cpu_s: float
    caller_cpu_s: float
    first_s: list[float]
    gaps_s: list[float]
    texts: list[str]

    @property
    def tokens_per_s(self) -> float:
        return self.num_tokens / self.wall_s

    @property
    def front_us_per_token(self) -> float:
        return 1e6 * self.front_cpu_s / self.num_tokens

    @property
    def caller_us_per_token(self) -> float:
        return 1e6 * self.caller_cpu_s / self.num_tokens


async def run_load(asks: Sequence[Ask], answers: int, pid: int) -> Round:
    """Every one of `asks` is a caller, who gets `answers` answers of MAX_TOKENS tokens from the server `pid`."""
    seen: list[Answer] = []

    async def caller(ask: Ask) -> None:
        for _ in range(answers):
            seen.append(await ask())  # noqa: PERF401 (one after the other)

    front, own, began = front_cpu_s(pid), time.process_time(), time.perf_counter()
    await asyncio.gather(*map(caller, asks))
    return Round(
        num_tokens=len(asks) * answers * MAX_TOKENS,
        wall_s=time.perf_counter() - began,
        front_cpu_s=front_cpu_s(pid) - front,
        caller_cpu_s=time.process_time() - own,
        first_s=[answer.times[1] - answer.times[0] for answer in seen],
        gaps_s=[later - earlier for answer in seen for earlier, later in pairwise(answer.times[1:])],
        texts=[answer.text for answer in seen],
    )


def front_cpu_s(pid: int) -> float:
    """CPU seconds so far of a server's processes, without the engine's and its workers'."""
    root = psutil.Process(pid)
    return sum(_cpu_s(process) for process in [root, *root.children(recursive=True)] if _in_front(process))


def _cpu_s(process: psutil.Process) -> float:
    """By the process's own clock (clock_getcpuclockid(3)): the kernel's ticks of 10 ms are 5 us for each token of a round."""
    if sys.platform == "linux":
        seconds = time.clock_gettime(~process.pid << 3 | 2)
    else:
        times = process.cpu_times()
        seconds = times.user + times.system
    return float(seconds)


def _in_front(process: psutil.Process) -> bool:
    said = " ".join([process.name(), *process.cmdline()])
    return not any(word in said for word in ("Engine", "Worker"))
