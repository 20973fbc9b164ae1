"""How a server hears that the change counter may have moved."""

from __future__ import annotations

from typing import Protocol


class Bell(Protocol):
    """For one thread at a time. It may ring for nothing; it may miss a change only until `timeout_s` is over."""

    def wait(self, timeout_s: float) -> None:
        """Returns at the next ring, or after `timeout_s` seconds at the latest. Never raises."""

    def close(self) -> None: ...
