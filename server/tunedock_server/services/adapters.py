"""Adapters: publish, look, promote, roll back, pin, retire, delete, capacity. Transport-free."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import BinaryIO

from tunedock_api.errors import BadInput, Conflict, NotFound, model_not_found
from tunedock_api.names import is_name
from tunedock_registry.adapters.versions import WAITING
from tunedock_registry.records import (
    AdapterRecord,
    AliasRecord,
    HistoryRecord,
    Page,
    Target,
    VersionRecord,
)
from tunedock_registry.registry import Registry

from ..catalog import Catalog
from ..residency.residents import Residents
from ..watcher import Watcher

MAX_WAIT_S = 30.0  # below what proxies give a silent request


@dataclass(frozen=True)
class Who:
    """On whose behalf: the project that owns the adapter, and the name that history keeps."""

    project: str
    actor: str


class AdapterService:
    """`watcher` sees changes by anybody, after a write of our own at once."""

    def __init__(self, registry: Registry, catalog: Catalog, residents: Residents, watcher: Watcher) -> None:
        self._adapters = registry.adapters
        self._catalog = catalog
        self._residents = residents
        self._watcher = watcher
        self._changed = watcher.look

    async def list(self, project: str, after: str | None, limit: int) -> Page[AdapterRecord]:
        return await asyncio.to_thread(self._adapters.list, project, after, limit)

    def known_aliases(self, project: str, name: str) -> Sequence[AliasRecord]:
        """From the snapshot: for lists, which must not ask the database once per item."""
        view = self._catalog.snapshot.adapters.get((project, name))
        return [view.aliases[alias] for alias in sorted(view.aliases)] if view else []

    async def get(self, project: str, name: str) -> tuple[AdapterRecord, Sequence[AliasRecord]]:
        """Raises NotFound."""
        _check_name(name)
        record = await asyncio.to_thread(self._adapters.get, project, name)
        return record, await asyncio.to_thread(self._adapters.aliases, project, name)

    async def versions(self, project: str, name: str, after: int | None, limit: int) -> Page[VersionRecord]:
        _check_name(name)
        return await asyncio.to_thread(self._adapters.versions, project, name, after, limit)

    async def version(self, project: str, name: str, version: str, wait_s: float = 0.0) -> VersionRecord:
        """`version`: a number, or a checkpoint's tag. Waits up to `wait_s` for the gate's verdict. Raises NotFound, BadInput.

        A version that is shown as ready can be asked at once, also when another server's gate has just said so.
        """
        if not 0 <= wait_s <= MAX_WAIT_S:
            raise BadInput(f"wait_s is {wait_s:g}: it can be 0 to {MAX_WAIT_S:g} seconds.", param="wait_s")
        deadline = time.monotonic() + wait_s
        while True:
            news = self._watcher.news  # before the look, so that no change falls between
            record = await self._find(project, name, version)
            if record.state not in WAITING or not await _comes(news, deadline):
                break
        if record.state == "ready" and not self._catalog.offers(record):
            await self._changed()
        return record

    async def _find(self, project: str, name: str, version: str) -> VersionRecord:
        _check_name(name)
        if version.isdecimal() and len(version) <= 9:
            return await asyncio.to_thread(self._adapters.version, project, name, int(version))
        if is_name(version):
            return await asyncio.to_thread(self._adapters.by_tag, project, name, version)
        raise model_not_found(f"{name}@{version}")

    def residency(self, version: VersionRecord) -> str:
        """Where it is in this server: stored, host, slot, pinned or failed."""
        if version.digest in self._residents.failed:
            return "failed"
        return self._residents.states().get(version.digest, "stored")

    async def set_alias(
        self,
        who: Who,
        name: str,
        alias: str,
        targets: Sequence[Target],
        expected_revision: int | None,
        reason: str,
    ) -> AliasRecord:
        """Warms every target before the pointer moves, so that no request waits for a load because of a promote.

        Raises NotFound; BadInput; Conflict (`alias_conflict`, `version_not_ready`); Unavailable when a target's files
        cannot be loaded: then the alias stays where it is.
        """
        _check_name(name)
        for target in targets:
            await self._warm(who.project, name, target.version)
        record = await asyncio.to_thread(
            self._adapters.set_alias, who.project, name, alias, targets, expected_revision, who.actor, reason
        )
        await self._changed()
        return record

    async def _warm(self, project: str, name: str, number: int) -> None:
        view = self._catalog.snapshot.adapters.get((project, name))
        version = view.versions.get(number) if view else None
        if version is not None:  # else the registry says why not
            await self._residents.prepare(self._catalog.pinned(version))

    async def rollback(self, who: Who, name: str, alias: str, reason: str) -> AliasRecord:
        """Raises NotFound; BadInput (`invalid_state`) when there is no earlier target; Conflict."""
        _check_name(name)
        record = await asyncio.to_thread(self._adapters.rollback, who.project, name, alias, who.actor, reason)
        await self._changed()
        return record

    async def delete_alias(self, who: Who, name: str, alias: str, expected_revision: int | None, reason: str) -> None:
        _check_name(name)
        await asyncio.to_thread(
            self._adapters.delete_alias, who.project, name, alias, expected_revision, who.actor, reason
        )
        await self._changed()

    async def history(self, project: str, name: str, after: str | None, limit: int) -> Page[HistoryRecord]:
        _check_name(name)
        return await asyncio.to_thread(self._adapters.history, project, name, after, limit)

    async def load(self, project: str, name: str, version: str) -> VersionRecord:
        """Into this server's engine, before anybody asks for it. The registry is not told.

        Raises NotFound; Conflict (`version_not_ready`); Overloaded when host memory is full of what is in use; Unavailable.
        """
        record = await self.version(project, name, version)
        if record.state != "ready":
            raise Conflict(f"{record.ref} is {record.state}: only a ready version can be loaded.", "version_not_ready")
        await self._residents.prepare(self._catalog.pinned(record))
        return record

    async def pin(self, project: str, name: str, version: str) -> VersionRecord:
        """Raises Conflict when the version is not ready or no slot is left to pin."""
        record = await self.version(project, name, version)
        if record.state == "ready" and not record.pinned:
            await self._residents.pin(self._catalog.pinned(record))
        record = await asyncio.to_thread(self._adapters.set_pin, record.id, True)
        await self._changed()
        return record

    async def unpin(self, project: str, name: str, version: str) -> VersionRecord:
        record = await self.version(project, name, version)
        record = await asyncio.to_thread(self._adapters.set_pin, record.id, False)
        await self._changed()
        return record

    async def retire(self, project: str, name: str, version: str, reason: str) -> VersionRecord:
        """No new requests from now on; running ones finish. Raises Conflict while an alias points there."""
        record = await self.version(project, name, version)
        record = await asyncio.to_thread(self._adapters.retire, record.id, reason)
        await self._changed()
        return record

    async def delete(self, who: Who, name: str, reason: str) -> None:
        """Aliases go, versions retire; requests that run finish on what they have."""
        _check_name(name)
        await asyncio.to_thread(self._adapters.delete_adapter, who.project, name, who.actor, reason)
        await self._changed()

    async def open_file(self, project: str, name: str, version: str, file: str) -> tuple[VersionRecord, BinaryIO]:
        record = await self.version(project, name, version)
        if record.state == "retired":
            raise Conflict(f"{record.ref} is retired: its files are gone.", "invalid_state")
        return record, await asyncio.to_thread(self._adapters.open_file, record, file)


def _check_name(name: str) -> None:
    """An illegal name cannot exist; saying so as 404 tells nothing apart."""
    if not is_name(name):
        raise NotFound(f"No adapter {name[:80]!r}.", param="name")


def targets_of(version: int | None, targets: Sequence[Target] | None) -> list[Target]:
    """Exactly one of both. Raises BadInput."""
    if (version is None) == (targets is None):
        raise BadInput("Give either 'version' or 'targets'.", param="version")
    return [Target(version)] if version is not None else list(targets or ())


async def _comes(news: asyncio.Event, deadline: float) -> bool:
    """Whether it does before `deadline`."""
    try:
        async with asyncio.timeout(deadline - time.monotonic()):
            await news.wait()
    except TimeoutError:
        return False
    return True
