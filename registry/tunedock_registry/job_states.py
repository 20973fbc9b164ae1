"""The life of a job, pure: which status may follow which.

validating_files ──► queued ──► running ──► succeeded
       │               │ ▲         │
       └──► paused ◄───┴─│─────────┤        failed and cancelled end every unfinished one
              └──────────┴◄────────┘        (released, retried or taken over: back to queued)
"""

from __future__ import annotations

from typing import Literal

from tunedock_api.errors import BadInput

from .records import JobStatus

Action = Literal["cancel", "pause", "resume"]

FINAL: frozenset[JobStatus] = frozenset({"succeeded", "failed", "cancelled"})
# A worker may hold a job in these; a paused job until its worker has saved what it needs.
HELD: frozenset[JobStatus] = frozenset({"running", "paused"})

MOVES: dict[JobStatus, frozenset[JobStatus]] = {
    "validating_files": frozenset({"queued", "paused", "failed", "cancelled"}),
    "queued": frozenset({"running", "paused", "failed", "cancelled"}),
    "running": frozenset({"succeeded", "failed", "cancelled", "paused", "queued"}),
    "paused": frozenset({"queued", "validating_files", "failed", "cancelled"}),
    "succeeded": frozenset(),
    "failed": frozenset(),
    "cancelled": frozenset(),
}

_DONE = {"cancel": "cancelled", "pause": "paused", "resume": "resumed"}


def may_move(old: JobStatus, new: JobStatus) -> bool:
    return new in MOVES[old]


def answer(job_id: str, status: JobStatus, validated: bool, action: Action) -> JobStatus:
    """The status after a caller's request. Raises BadInput (`invalid_state`, HTTP 400) when `status` forbids it."""
    new = _target(validated, action)
    if (action == "resume" and status != "paused") or not may_move(status, new):
        raise BadInput(f"The job {job_id} is {status}: it cannot be {_DONE[action]}.", "invalid_state")
    return new


def _target(validated: bool, action: Action) -> JobStatus:
    if action == "cancel":
        return "cancelled"
    if action == "pause":
        return "paused"
    return "queued" if validated else "validating_files"


def retry_delay_s(attempts: int) -> int:
    """Seconds before a failed job is tried again, after its n-th try: 2, 4, 8 … at most 60."""
    return min(60, 1 << min(attempts, 6))
