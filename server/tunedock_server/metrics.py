"""Our own Prometheus series. vLLM's (`vllm:*`) live in the default registry, which its start clears of that prefix."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import REGISTRY, CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

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


class Metrics:
    """Labels come from closed sets: route templates, known methods, status codes, error codes."""

    def __init__(self, read: Callable[[], Iterable[Reading]]) -> None:
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

    def observe_request(self, route: str, method: str, status: int, seconds: float) -> None:
        self._requests.labels(route, method, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def render(self) -> bytes:
        """Prometheus text of this process, vLLM's series included."""
        return bytes(generate_latest(self._registry)) + bytes(generate_latest(REGISTRY))
