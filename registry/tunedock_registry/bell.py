"""How a server hears that the change counter may have moved."""

from __future__ import annotations

import time
from typing import Protocol


class Bell(Protocol):
    """For one thread at a time. It may ring for nothing; it may miss a change only until `timeout_s` is over."""

    def wait(self, timeout_s: float) -> None:
        """Returns at the next ring, or after `timeout_s` seconds at the latest. Never raises."""

    def close(self) -> None: ...


class SleepBell:
    """Rings every `interval_s`: reading one row of SQLite costs less than anything cleverer."""

    def __init__(self, interval_s: float = 0.1) -> None:
        self._interval_s = interval_s

    def wait(self, timeout_s: float) -> None:
        time.sleep(min(timeout_s, self._interval_s))

    def close(self) -> None:
        return
