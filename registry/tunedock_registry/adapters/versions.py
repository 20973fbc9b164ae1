"""The life of a version, in one place.

    published ──> verifying ──> ready ──> retiring ──> retired
        │             │                      ▲
        └─────────────┴──> rejected ─────────┘

`retiring` takes no new requests; `retired` has no files any more. `rejected` keeps its row and its reason, and its files
for a grace time, in which they can be downloaded and looked at. Nothing leads back: a version that was taken out of
service is published again, as a new number of the same bytes.
"""

from __future__ import annotations

from tunedock_api.errors import Conflict

from ..records import VersionState

_NEXT: dict[VersionState, frozenset[VersionState]] = {
    "published": frozenset({"verifying", "rejected", "retiring"}),
    "verifying": frozenset({"published", "ready", "rejected", "retiring"}),
    "ready": frozenset({"retiring", "rejected"}),
    "rejected": frozenset({"retiring"}),
    "retiring": frozenset({"retired"}),
    "retired": frozenset(),
}

WAITING: tuple[VersionState, ...] = ("published", "verifying")
LIVE: tuple[VersionState, ...] = ("published", "verifying", "ready", "rejected")
STORED: tuple[VersionState, ...] = (*LIVE, "retiring")
SERVED: tuple[VersionState, ...] = (*WAITING, "ready", "retiring")  # may be in an engine: the files must be there


def changes(ref: str, current: VersionState, to: VersionState) -> bool:
    """False when the version is there already (a repetition). Raises Conflict for a step that does not exist."""
    if current == to:
        return False
    if to not in _NEXT[current]:
        raise Conflict(f"{ref} is {current}: it cannot become {to}.", "invalid_state", details={"state": current})
    return True
