"""An object store whose calls are steps of a World, which may crash before the call has an effect or after it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tunedock_registry.object_store import ObjectStore

from .faulty_fs import FaultyFS

STORE = "store: "


class CrashingStore(ObjectStore):
    """`store` with steps around every request to it, by names that begin with `STORE`."""

    def __init__(self, store: ObjectStore, steps: FaultyFS) -> None:
        self._store, self._steps = store, steps

    def create(self, key: str, source: Path) -> bool:
        self._steps.step("store: put")
        made = self._store.create(key, source)
        self._steps.step("store: put done")
        return made

    def exists(self, key: str) -> bool:
        self._steps.step("store: head")
        return self._store.exists(key)

    def read(self, key: str) -> Iterator[bytes]:
        self._steps.step("store: get")
        yield from self._store.read(key)

    def delete(self, key: str) -> None:
        self._steps.step("store: delete")
        self._store.delete(key)
        self._steps.step("store: delete done")

    def list(self, prefix: str) -> Iterator[tuple[str, float]]:
        self._steps.step("store: list")
        yield from self._store.list(prefix)
