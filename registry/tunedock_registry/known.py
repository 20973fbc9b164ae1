"""What a server holds of the registry in memory, to decide requests by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from .adapters.snapshot import Snapshot
from .keys import KeyRecord


@dataclass(frozen=True)
class Known:
    """As of one moment, that of `snapshot.counter`.

    `keys`: those that may be used, by digest. `lent`: (project, reference) → id of a version that another project lets this
    one use. `waiting`: some version waits for the publish gate.
    """

    snapshot: Snapshot = field(default_factory=Snapshot)
    keys: Mapping[str, KeyRecord] = field(default_factory=dict)
    lent: Mapping[tuple[str, str], int] = field(default_factory=dict)
    waiting: bool = False
