"""When will the job be done? Remaining steps over an exponential average of the measured speed."""

from __future__ import annotations

import time

_WARM_STEPS = 5
_EVERY_S = 5.0
_SMOOTHING = 0.1


class Pace:
    """`remaining` steps are left at the start; `estimate` is called after each one."""

    def __init__(self, remaining: int) -> None:
        self._remaining = remaining
        self._seen = 0
        self._step_s = 0.0
        self._last = time.monotonic()
        self._told = float("-inf")

    def estimate(self) -> int | None:
        """Unix seconds, or None when it is too early or was said a moment ago."""
        now = time.monotonic()
        step_s, self._last = now - self._last, now
        self._seen += 1
        self._remaining -= 1
        weight = max(_SMOOTHING, 1 / self._seen)
        self._step_s += weight * (step_s - self._step_s)
        if self._seen < _WARM_STEPS or now - self._told < _EVERY_S:
            return None
        self._told = now
        return int(time.time() + self._remaining * self._step_s)
