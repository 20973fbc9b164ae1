"""Notices an engine that lives but does not move: requests are waiting and no step has ended for too long."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from vllm.v1.metrics.loggers import StatLoggerBase


class Progress:
    """`limit_s` seconds without a step while work is waiting count as a hang. `now` is a monotonic clock in seconds."""

    def __init__(self, limit_s: float, now: Callable[[], float] = time.monotonic) -> None:
        self._limit_s, self._now = limit_s, now
        self._moved = now()

    def moved(self) -> None:
        self._moved = self._now()

    def hangs(self, num_unfinished: int) -> bool:
        """Ask often: an idle engine counts as moving each time that this is called."""
        if num_unfinished == 0:
            self.moved()
        return self._now() - self._moved > self._limit_s

    def logger_factory(self) -> Callable[[Any, int], StatLoggerBase]:
        """For `AsyncLLM(stat_loggers=…)`, which calls it once and then reports every step."""
        return lambda config, index: _StepWatcher(self)


class _StepWatcher(StatLoggerBase):
    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def record(self, *args: Any, **kwargs: Any) -> None:
        self._progress.moved()

    def log_engine_initialized(self) -> None:
        self._progress.moved()
