"""The servers that take turns: all of them run, those not being measured are stopped by signal."""

from __future__ import annotations

import os
import signal
import statistics
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import psutil

from .figures import Figure, bootstrap
from .load import client
from .lora_adapters import Adapter
from .lora_traffic import Traffic
from .servers import Ours, Stock

Samples = dict[tuple[str, str], list[float]]


@dataclass(frozen=True)
class Effort:
    """`rounds` of `num_tokens` a stream; `num_loads` adapters loaded while others stream, and as many asked for cold."""

    rounds: int
    num_tokens: int
    num_loads: int
    num_registered: int


@dataclass
class Arm:
    """A server, frozen but for its turns."""

    name: str
    server: Ours | Stock
    traffic: Traffic
    adapters: list[str]
    load: Callable[[Adapter], Awaitable[object]]

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[Traffic]:
        """With connections of its own: a server that wakes up closes those that were idle for so long."""
        os.killpg(self.pid, signal.SIGCONT)
        try:
            async with client(self.server.client.base_url) as connected:
                self.server.client = self.traffic.client = connected
                yield self.traffic
        finally:
            os.killpg(self.pid, signal.SIGSTOP)

    @property
    def pid(self) -> int:
        return self.server.process.pid

    def rss_bytes(self) -> int:
        root = psutil.Process(self.pid)
        return sum(process.memory_info().rss for process in (root, *root.children(recursive=True)))

    def api_bytes(self) -> int:
        """Resident memory of the process in front of the engine alone."""
        return int(psutil.Process(self.pid).memory_info().rss)


def freeze(stack: AsyncExitStack, name: str, server: Ours | Stock, adapters: list[str]) -> Arm:
    """Stops the server until its first turn, and lets it run again at the end of `stack`."""
    arm = Arm(name, server, Traffic(server.client), adapters, _load(server))
    stack.callback(os.killpg, arm.pid, signal.SIGCONT)
    os.killpg(arm.pid, signal.SIGSTOP)
    return arm


def _load(server: Ours | Stock) -> Callable[[Adapter], Awaitable[object]]:
    async def load(adapter: Adapter) -> None:
        if isinstance(server, Ours):
            await server.load(f"{adapter.name}@1")
        else:
            await server.load(adapter.name, adapter.folder)

    return load


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
