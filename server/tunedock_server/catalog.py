"""What a caller may name in `model` right now: the registry's snapshot of this moment, held in memory.

A request never waits for the database: `resolve` reads one immutable object, and a refresh replaces that object.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping

from tunedock_api.errors import model_not_found
from tunedock_api.names import parse_ref
from tunedock_registry.adapters.snapshot import Snapshot
from tunedock_registry.records import ReadyVersion, VersionRecord
from tunedock_registry.registry import Registry

from .pool import Pinned


class Catalog:
    """`snapshot` is replaced, never changed."""

    def __init__(self, registry: Registry, base_model: str) -> None:
        self._registry = registry
        self.base_model = base_model
        self.snapshot = Snapshot()
        self._lent: Mapping[tuple[str, str], ReadyVersion] = {}
        self._refreshing = asyncio.Lock()

    async def refresh(self, projects: Collection[str] = ()) -> Snapshot:
        """Reads the registry anew, with what is lent to `projects`. An older answer never replaces a newer one."""
        async with self._refreshing:
            snapshot = await asyncio.to_thread(self._registry.adapters.snapshot)
            self._lent = await asyncio.to_thread(self._read_lent, snapshot, projects)
            self.snapshot = snapshot
        return self.snapshot

    def _read_lent(self, snapshot: Snapshot, projects: Collection[str]) -> dict[tuple[str, str], ReadyVersion]:
        lent = {project: self._registry.permissions.lent_to(project) for project in projects}
        wanted = {version_id for refs in lent.values() for version_id in refs.values()}
        if not wanted:
            return {}
        known = {version.id: version for version in snapshot.versions() if version.id in wanted}
        return {
            (project, ref): known[version_id]
            for project, refs in lent.items()
            for ref, version_id in refs.items()
            if version_id in known
        }

    def resolve(self, project: str, model: str, sticky_key: str | None = None) -> Pinned:
        """What serves `model`. Raises NotFound `model_not_found`; remembers nothing about unknown names."""
        if model == self.base_model:
            return Pinned(self.base_model)
        version = self.version(project, model, sticky_key)
        if version is None:
            raise model_not_found(model)
        return self.pinned(version)

    def version(self, project: str, model: str, sticky_key: str | None = None) -> ReadyVersion | None:
        """The project's own version that `model` means, or a checkpoint that another project lends to it."""
        ref = parse_ref(model)
        own = self.snapshot.resolve(project, ref, sticky_key) if ref else None
        return own or self._lent.get((project, model))

    def offers(self, version: VersionRecord) -> bool:
        """Whether a request for exactly this version would be served now; false for a moment after it became ready."""
        view = self.snapshot.adapters.get((version.project, version.adapter))
        if view is None:
            return False
        return version.number in view.versions if version.tag is None else version.tag in view.checkpoints

    def lent_to(self, project: str) -> list[tuple[str, ReadyVersion]]:
        """(reference, version) of what other projects lend to this one."""
        return [(ref, version) for (owner, ref), version in self._lent.items() if owner == project]

    def pinned(self, version: ReadyVersion | VersionRecord) -> Pinned:
        """The version as an engine needs it."""
        return Pinned(
            public=version.ref,
            digest=version.digest,
            path=self._registry.home.adapter_dir(version.digest),
            rank=version.rank,
            profile=version.serving,
        )
