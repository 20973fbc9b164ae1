"""What a caller may name in `model` right now: the registry's snapshot of this moment, held in memory.

A request never waits for the database: `resolve` reads one immutable object, and a refresh replaces that object.
"""

from __future__ import annotations

import asyncio

from tunedock_api.errors import model_not_found
from tunedock_api.names import parse_ref
from tunedock_registry.adapters.snapshot import Snapshot
from tunedock_registry.records import VersionRecord
from tunedock_registry.registry import Registry

from .pool import Pinned


class Catalog:
    """`snapshot` is replaced, never changed."""

    def __init__(self, registry: Registry, base_model: str) -> None:
        self._registry = registry
        self.base_model = base_model
        self.snapshot = Snapshot()
        self._refreshing = asyncio.Lock()

    async def refresh(self) -> Snapshot:
        """Reads the registry anew. An older answer never replaces a newer one."""
        async with self._refreshing:
            self.snapshot = await asyncio.to_thread(self._registry.adapters.snapshot)
        return self.snapshot

    def resolve(self, project: str, model: str, sticky_key: str | None = None) -> Pinned:
        """What serves `model`. Raises NotFound `model_not_found`; remembers nothing about unknown names."""
        if model == self.base_model:
            return Pinned(self.base_model)
        ref = parse_ref(model)
        version = self.snapshot.resolve(project, ref, sticky_key) if ref else None
        if version is None:
            raise model_not_found(model)
        return self.pinned(version)

    def pinned(self, version: VersionRecord) -> Pinned:
        """The version as an engine needs it."""
        return Pinned(
            public=version.ref,
            digest=version.digest,
            path=self._registry.home.adapter_dir(version.digest),
            rank=version.rank,
            profile=version.manifest.identity.serving,
        )
