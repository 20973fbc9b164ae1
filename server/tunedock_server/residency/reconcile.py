"""Brings one engine in line with the registry: pins, prefetches for aliases that moved, and eviction of what retired."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Collection

from tunedock_api.errors import TuneDockError
from tunedock_registry.adapters.snapshot import Snapshot
from tunedock_registry.records import ReadyVersion

from ..pool import Pinned
from .residents import Residents

log = logging.getLogger(__name__)


class Reconciler:
    """Runs on the event loop, after every change of the snapshot."""

    def __init__(
        self,
        residents: Residents,
        pinned: Callable[[ReadyVersion], Pinned],
    ) -> None:
        self._residents = residents
        self._pinned = pinned
        self._pins: set[str] = set()

    async def restore(self, snapshot: Snapshot, recent: Collection[Pinned] = ()) -> None:
        """After an engine start: pins, then what aliases point to, then what was in use before, as far as it fits."""
        offered = {version.digest: version for version in snapshot.versions()}
        self._residents.preferred = frozenset(version.digest for version in alias_targets(snapshot))
        pins = [self._pinned(version) for version in offered.values() if version.pinned]
        wanted = {version.digest: self._pinned(version) for version in alias_targets(snapshot)}
        wanted |= {p.digest: p for p in recent if p.digest in offered and p.digest is not None}
        self._pins = {pin.digest for pin in pins if pin.digest}
        await self._residents.restore(pins, [p for digest, p in wanted.items() if digest not in self._pins])

    async def follow(self, before: Snapshot, now: Snapshot) -> None:
        """After the registry changed. Failures are logged: the next request for that version gets the error itself."""
        await self._follow_pins(now)
        targets = {version.digest: version for version in alias_targets(now)}
        self._residents.preferred = frozenset(targets)
        known = {version.digest for version in alias_targets(before)}
        for digest, version in targets.items():
            if digest not in known:
                await self._attempt(self._residents.prefetch(self._pinned(version)), version.ref)
        await self.evict_unoffered(now)

    async def evict_unoffered(self, now: Snapshot) -> None:
        """Frees what no ready version stands for any more; what a request still uses goes at a later look."""
        offered = {version.digest for version in now.versions()}
        for digest in set(self._residents.states()) - offered:
            if await self._residents.evict(digest):
                log.info("unloaded retired version sha256:%s", digest[:12])

    async def _follow_pins(self, now: Snapshot) -> None:
        wanted = {version.digest: version for version in now.versions() if version.pinned}
        for digest in self._pins - wanted.keys():
            await self._residents.unpin(digest)
        for digest in wanted.keys() - self._pins:
            await self._attempt(self._residents.pin(self._pinned(wanted[digest])), wanted[digest].ref)
        self._pins = set(wanted)

    async def _attempt(self, work: Awaitable[None], ref: str) -> None:
        try:
            await work
        except TuneDockError as error:
            log.warning("%s: %s", ref, error.message)


def alias_targets(snapshot: Snapshot) -> list[ReadyVersion]:
    """What aliases point to, most traffic first within an alias."""
    found: dict[int, ReadyVersion] = {}
    for view in snapshot.adapters.values():
        for alias in view.aliases.values():
            for target in sorted(alias.targets, key=lambda target: -target.weight):
                if target.version in view.versions:
                    version = view.versions[target.version]
                    found.setdefault(version.id, version)
    return list(found.values())
