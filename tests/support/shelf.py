"""A registry with a tiny base model, for tests about adapters."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tunedock_registry.adapters.intake import PreparedAdapter
from tunedock_registry.records import Target, VersionRecord
from tunedock_registry.registry import Registry

from .adapters import facts, make_prepared, write_base
from .registry import FakeTime, open_registry


@dataclass
class Shelf:
    """A registry and a base model, with short words for what tests do all the time."""

    registry: Registry
    folder: Path
    time: FakeTime

    @classmethod
    def open(cls, folder: Path, database_url: str | None = None) -> Shelf:
        time = FakeTime()
        return cls.around(open_registry(folder / "home", time, database_url=database_url), folder, time)

    @classmethod
    def around(cls, registry: Registry, folder: Path, time: FakeTime | None = None) -> Shelf:
        """For a registry that is open already; `folder` gets the base model and the sources."""
        if not (folder / "base").exists():
            write_base(folder / "base")
        return cls(registry, folder, time or FakeTime())

    def prepare(self, seed: int = 1) -> PreparedAdapter:
        """Another adapter for every seed."""
        return make_prepared(self.folder / f"lora-{seed}", facts(self.folder / "base"), seed)

    def publish(self, name: str = "support", seed: int = 1) -> VersionRecord:
        """Published, not yet ready."""
        return self.registry.adapters.publish("default", name, self.prepare(seed), origin="imported")

    def ready(self, name: str = "support", seed: int = 1) -> VersionRecord:
        version = self.publish(name, seed)
        self.registry.adapters.set_state(version.id, "verifying")
        return self.registry.adapters.set_state(version.id, "ready", parity={"checked": True})

    def promote(self, number: int, name: str = "support", alias: str = "production") -> None:
        self.registry.adapters.set_alias("default", name, alias, [Target(number)])
