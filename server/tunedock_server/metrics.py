"""Our own Prometheus series. vLLM's (`vllm:*`) live in the default registry, which its start clears of that prefix."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import REGISTRY, CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from .pool import Residency

LORA_INFO = "vllm:lora_requests_info"
CAP = 256
Reading = tuple[str, str, float]  # name without prefix, help text, value; names ending in _total are counters


class Readings(Collector):
    """Numbers that other objects count already, read when somebody scrapes."""

    def __init__(self, read: Callable[[], Iterable[Reading]]) -> None:
        self._read = read

    def collect(self) -> Iterable[Metric]:
        for name, text, value in self._read():
            full = f"tunedock_{name}"
            family = CounterMetricFamily if name.endswith("_total") else GaugeMetricFamily
            metric = family(full, text)
            metric.add_metric([], value)
            yield metric


@dataclass(frozen=True)
class LoraReading:
    """What LoRA-aware routers want to know, in public names (vLLM's own series carries engine names).

    `loaded`: (public name, where it is, rank). `waiting`: names with requests that wait for a slot.
    """

    max_loras: int
    loaded: Sequence[tuple[str, Residency, int]]
    waiting: Sequence[str]


class LoraReadings(Collector):
    """`vllm:lora_requests_info` as the Gateway API Inference Extension reads it: running = loaded and ready to serve.

    `vllm:lora_adapter_loaded` follows the proposal vllm#54830. At most `CAP` adapters are named.
    """

    def __init__(self, read: Callable[[], LoraReading]) -> None:
        self._read = read

    def collect(self) -> Iterable[Metric]:
        reading = self._read()
        loaded = list(reading.loaded)[:CAP]
        info = GaugeMetricFamily(
            LORA_INFO, "Adapters that are loaded, and that requests wait for",
            labels=["max_lora", "running_lora_adapters", "waiting_lora_adapters"],
        )  # fmt: skip
        running = ",".join(name for name, where, _ in loaded if where != "host")
        info.add_metric([str(reading.max_loras), running, ",".join(reading.waiting[:CAP])], time.time())
        yield info
        family = GaugeMetricFamily(
            "vllm:lora_adapter_loaded", "Where an adapter is", labels=["adapter_name", "level", "pinned", "rank"]
        )
        for name, where, rank in loaded:
            level, pinned = "cpu" if where == "host" else "gpu", str(where == "pinned").lower()
            family.add_metric([name, level, pinned, str(rank)], 1)
        yield family


class Others(Collector):
    """The process's default registry (vLLM's series) without what we say better ourselves."""

    def collect(self) -> Iterable[Metric]:
        return (metric for metric in REGISTRY.collect() if metric.name != LORA_INFO)


class Metrics:
    """Labels come from closed sets: route templates, known methods, status codes, error codes."""

    def __init__(self, read: Callable[[], Iterable[Reading]], read_lora: Callable[[], LoraReading]) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "tunedock_http_requests",
            "HTTP requests by route template, method and status",
            ["route", "method", "status"],
            registry=self._registry,
        )
        self._seconds = Histogram(
            "tunedock_http_request_seconds",
            "Time to the end of the answer",
            ["route"],
            buckets=(0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300),
            registry=self._registry,
        )
        self._registry.register(Readings(read))
        self._registry.register(LoraReadings(read_lora))
        self._others = CollectorRegistry()
        self._others.register(Others())

    def observe_request(self, route: str, method: str, status: int, seconds: float) -> None:
        self._requests.labels(route, method, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def render(self) -> bytes:
        """Prometheus text of this process, vLLM's series included."""
        return bytes(generate_latest(self._registry)) + bytes(generate_latest(self._others))
