"""Registries for tests: on a temporary home, with a clock that the test moves."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tunedock_registry.clock import Clock
from tunedock_registry.durable import DurableFS
from tunedock_registry.layout import Home
from tunedock_registry.object_store import ObjectStore
from tunedock_registry.records import Claim, FileRecord, JobRecord, JobSpec
from tunedock_registry.registry import Registry


@dataclass
class FakeTime:
    """`advance` moves both clocks; `jump` only the wall clock, as an administrator or NTP would. Seconds."""

    wall_s: float = 1_700_000_000.0
    monotonic_s: float = 0.0

    def advance(self, seconds: float) -> None:
        self.wall_s += seconds
        self.monotonic_s += seconds

    def jump(self, seconds: float) -> None:
        self.wall_s += seconds

    def clock(self) -> Clock:
        return Clock(wall=lambda: self.wall_s, monotonic=lambda: self.monotonic_s)


def open_registry(
    root: Path,
    time: FakeTime | None = None,
    fs: DurableFS | None = None,
    database_url: str | None = None,
    store: ObjectStore | None = None,
) -> Registry:
    clock = time.clock() if time else None
    return Registry.open(Home(root), database_url=database_url, clock=clock, fs=fs, store=store)


def add_file(registry: Registry, project: str = "default", content: bytes = b"{}\n") -> FileRecord:
    return registry.files.create(project, "data.jsonl", "fine-tune", [content])


def spec(**changes: object) -> JobSpec:
    return JobSpec(**{"model": "base", "training_file": "file-1", "seed": 7, **changes})  # type: ignore[arg-type]


def queued_job(registry: Registry, project: str = "default", **changes: object) -> JobRecord:
    """A job that waits for a worker."""
    return registry.jobs.mark_validated(registry.jobs.create(project, spec(**changes)).id)


def claimed_job(registry: Registry, worker: str = "worker-1") -> Claim:
    """A new job in the hands of `worker`."""
    job = queued_job(registry)
    claim = registry.jobs.claim(worker)
    assert claim is not None
    assert claim.job.id == job.id
    return claim
