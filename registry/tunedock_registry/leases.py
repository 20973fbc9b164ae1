"""Who still works on a job, judged without comparing clocks of two machines.

A worker counts its heartbeat up in the job's row. A scanner remembers when, by its own monotonic clock, it first saw the
present (epoch, heartbeat) of a job; once that pair has stood still for a lease, the worker is gone. Clock jumps neither
steal nor freeze a job, and a scanner that has just started waits one full lease. The lease gives liveness only: what
keeps a worker that wakes up late from writing is the epoch (`job_writes.fenced`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

HEARTBEAT_S = 5.0
LEASE_S = 25.0

Beat = tuple[int, int]


@dataclass
class LeaseWatch:
    """One scanner's memory: job id → (epoch, heartbeat) and since when it has been that."""

    lease_s: float = LEASE_S
    _seen: dict[str, tuple[Beat, float]] = field(default_factory=dict)

    def expired(self, beats: Iterable[tuple[str, Beat]], now: float) -> dict[str, Beat]:
        """Of the jobs held at present, those whose beat has stood still for a lease. `now` is monotonic."""
        held = dict(beats)
        self._seen = {job: self._since(job, beat, now) for job, beat in held.items()}
        return {job: beat for job, (beat, since) in self._seen.items() if now - since >= self.lease_s}

    def _since(self, job: str, beat: Beat, now: float) -> tuple[Beat, float]:
        known = self._seen.get(job)
        return known if known is not None and known[0] == beat else (beat, now)
