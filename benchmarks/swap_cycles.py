"""Publish and retire over and over: memory, files and descriptors stay flat."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import psutil

from .figures import Figure
from .markers import Marker
from .servers import Ours
from .swap_latency import ask

NAME = "cycled"
NUM_SAMPLES = 20
MAX_GROWTH, MAX_MORE = 1.02, 8


@dataclass(frozen=True)
class Footprint:
    """Of the server with its engine processes, and of its adapters folder."""

    rss_bytes: int
    num_fds: int
    num_files: int


def footprint(server: Ours) -> Footprint:
    root = psutil.Process(server.process.pid)
    processes = [root, *root.children(recursive=True)]
    folder = server.process.home / "adapters"
    return Footprint(
        rss_bytes=sum(process.memory_info().rss for process in processes),
        num_fds=sum(process.num_fds() for process in processes),
        num_files=sum(1 for _ in folder.rglob("*")),
    )


async def measure(server: Ours, markers: Sequence[Marker], num_cycles: int) -> list[Figure]:
    """Every cycle publishes, asks and retires one version; `markers` are used in turn."""
    samples: list[Footprint] = []
    for cycle in range(num_cycles):
        marker = markers[cycle % len(markers)]
        ref = await server.publish(NAME, marker.folder)
        await ask(server, ref, ref, marker)
        await server.promote(ref)
        if cycle:
            await server.retire(f"{NAME}@{cycle}")
        if cycle % max(1, num_cycles // NUM_SAMPLES) == 0:
            samples.append(footprint(server))
    return figures(samples, num_cycles)


def figures(samples: Sequence[Footprint], num_cycles: int) -> list[Figure]:
    """The last quarter against the second quarter: what start-up and caches take is over by then."""
    quarter = max(1, len(samples) // 4)
    early, late = samples[quarter : 2 * quarter], samples[-quarter:]
    rss = _mean(late, "rss_bytes") / _mean(early, "rss_bytes")
    fds = _mean(late, "num_fds") - _mean(early, "num_fds")
    files = _mean(late, "num_files") - _mean(early, "num_files")
    title = f"after {num_cycles} publish/retire cycles"
    return [
        Figure(f"RSS {title}, last / second quarter", rss, "x", f"<= {MAX_GROWTH} x", rss <= MAX_GROWTH),
        Figure(f"more file descriptors {title}", fds, "", f"<= {MAX_MORE}", fds <= MAX_MORE),
        Figure(f"more files {title}", files, "", f"<= {8 * MAX_MORE}", files <= 8 * MAX_MORE),
    ]


def _mean(samples: Sequence[Footprint], name: str) -> float:
    return statistics.fmean(getattr(sample, name) for sample in samples)
