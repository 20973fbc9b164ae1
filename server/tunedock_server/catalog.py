"""What a caller may name in `model` right now, and with which key: the registry's state of this moment, held in memory.

A request never waits for the database: `resolve` reads one immutable object, and a change replaces that object.
"""

from __future__ import annotations

from collections.abc import Mapping

from tunedock_api.errors import model_not_found
from tunedock_api.names import parse_ref
from tunedock_registry.adapters.snapshot import Snapshot
from tunedock_registry.keys import KeyRecord
from tunedock_registry.known import Known
from tunedock_registry.records import ReadyVersion, VersionRecord
from tunedock_registry.registry import Registry

from .pool import Pinned


class Catalog:
    """`known` is replaced, never changed."""

    def __init__(self, registry: Registry, base_model: str) -> None:
        self._registry = registry
        self.base_model = base_model
        self.known = Known()
        self._lent: Mapping[tuple[str, str], ReadyVersion] = {}

    def take(self, known: Known) -> None:
        """From now on requests are decided by this."""
        wanted = set(known.lent.values())
        versions = (
            {version.id: version for version in known.snapshot.versions() if version.id in wanted} if wanted else {}
        )
        self._lent = {key: versions[version_id] for key, version_id in known.lent.items() if version_id in versions}
        self.known = known

    @property
    def snapshot(self) -> Snapshot:
        return self.known.snapshot

    def keys(self) -> Mapping[str, KeyRecord]:
        return self.known.keys

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
